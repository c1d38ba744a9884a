"""The contract of a task: any module that has these four names can be named in benchmarks.yaml."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from mimbench.system.errors import UserError

if TYPE_CHECKING:  # the runner reads what tasks declare without torch
    from mimbench.vit.weights import VitWeights


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the machine decides; nothing in here may move a number."""

    device: str = "auto"
    workers: int = 2
    """Loader processes for each training process."""
    max_batch: int = 64
    """Images that fit into one process at once; the effective batch stays what the recipe says."""
    compile: bool = False
    recompute: bool = False
    """Compute activations again in the backward pass rather than keep them: less memory, more time."""


@runtime_checkable
class Task(Protocol):
    """A module; see docs/adding.md for a template."""

    @property
    def VERSION(self) -> int:
        """Raised when the protocol changes: tables never mix versions."""
        ...

    @property
    def MAIN_METRIC(self) -> str:
        """The key of `run`'s result that stands in the table."""
        ...

    @property
    def Config(self) -> type[Any]:
        """A frozen dataclass: the whole schema of the task's configuration."""
        ...

    def run(self, weights: "VitWeights", config: Any, out: Path) -> dict[str, float]:
        """Evaluate the weights; write logs and outcomes under `out`; return the metrics."""
        ...


@runtime_checkable
class Rehearsed(Protocol):
    """What a task that trains may offer besides, so that `plan` can time what follows a training."""

    def rehearsal(self, config: Any) -> Any:
        """Return the same configuration with next to no training."""
        ...


def load_task(name: str) -> Task:
    """Return the task module of a dotted name such as `knn.classify`."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"no task module '{name}'; is the name in benchmarks.yaml right?"
            ) from error
        raise UserError(
            f"task '{name}' needs the package '{error.name}', which is not installed; run ./setup.sh"
        ) from error
    lacking = [
        part for part in ("VERSION", "MAIN_METRIC", "Config", "run") if not hasattr(module, part)
    ]
    if lacking:
        raise UserError(f"'{name}' is not a task: it lacks {', '.join(lacking)}")
    return cast(Task, module)
