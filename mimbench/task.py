"""The contract of a task: any module with these four names can be named in benchmarks.yaml.

    VERSION, MAIN_METRIC, Config, run(weights, config, out) -> TaskResult

What else the suite should know about a task (is it heavy, what memory does it take...) the task
declares in `TRAITS`; without it the defaults of `Traits` hold. The library knows no task by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from mimbench.scores.figures import Figure, Picture
from mimbench.system.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from mimbench.model import Spec, Weights
    from mimbench.scores.outcomes import Outcomes
    from mimbench.vit.footprint import Footprint


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


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a task found. The library writes it; a task writes only what it needs to go on later.

    Of several processes only the first one's outcomes, pictures and notes are kept.
    """

    metrics: Mapping[str, float]
    """Finite numbers, `MAIN_METRIC` among them; shares in percent. Not measured means absent."""
    outcomes: Sequence[Outcomes] = ()
    """What was predicted for each image: gives intervals, paired comparisons and verification."""
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What a reader of the numbers should know, as JSON: the micro-batch used, how a head was chosen."""
    draws: int = 1
    """Draws of the training images that the metrics are means over; `{metric}_sd` is their spread."""
    built_on: Mapping[str, str] = field(default_factory=dict)
    """Runs beside this one that it used: folder -> checksum of its result. Another result there makes
    this one out of date."""
    ran: Mapping[str, Any] = field(default_factory=dict)
    """What of the protocol the machine did not allow, as it was run: columns of their own. Empty: all."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What the suite should know about a task before it runs; every default is safe."""

    effort: int = 0
    """0: light. More: heavy, so it starts before lighter ones and gets several nodes of a cluster."""
    labelled_images: bool = False
    """Its data is a folder of images by class (train/, val/), which the canary may use."""
    whole_folder: bool = False
    """Every file of its data folder is its data, whatever the configuration names."""
    lower_is_better: bool = False
    """Of the main metric."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Metric -> what the table calls it in a remark beside the main one: `drop` -> drop from clean."""
    trains: bool | Callable[[Any], bool] = True
    """Another seed gives another number, so that one alone shows nothing beyond the test images; where
    it depends on the configuration, a function of that."""
    canonical: Callable[[Any], Any] | None = None
    """config -> the same with everything set back that cannot move the main metric (figures beside it,
    how often is looked, where a list lies): two configurations of one recipe become equal."""
    resolved: Callable[[Spec, Any], Mapping[str, Any]] | None = None
    """(architecture, config) -> fields that the configuration leaves to the model's size, filled in."""
    uses: Callable[[Any], tuple[str, ...]] | None = None
    """config -> benchmarks whose finished run on the same checkpoint it takes something from."""
    free_fields: frozenset[str] = frozenset()
    """Fields of `Config` that move no number, besides data, seed and machine: comparisons skip them."""
    footprint: Callable[[Spec, Any, int], Footprint] | None = None
    """(architecture, config, labelled images) -> memory and disk; by default those of a full training."""
    nearby: Callable[[Spec, Any, Mapping[str, Any]], Mapping[str, Any]] | None = None
    """(architecture, config, notes of the finished run) -> neighbouring settings, for the recipe gap:
    name -> a configuration to run, or the metric of the run itself that already is its number."""
    rehearsal: Callable[[Any], Any] | None = None
    """config -> the same with next to no training, so that `plan` can time what follows a training."""


@runtime_checkable
class Task(Protocol):
    """A module; see docs/howto/adding.md for a template."""

    @property
    def VERSION(self) -> int:
        """Raised when the protocol changes: tables never mix versions."""
        ...

    @property
    def MAIN_METRIC(self) -> str:
        """The metric that stands in the table."""
        ...

    @property
    def Config(self) -> type[Any]:
        """A frozen dataclass: the whole schema of the task's configuration."""
        ...

    def run(self, weights: Weights, config: Any, out: Path) -> TaskResult:
        """Evaluate the weights; logs and states to resume from go into `out`."""
        ...


def traits_of(task: Task) -> Traits:
    """Return what a task declares, or the defaults."""
    found = getattr(task, "TRAITS", None)
    if found is not None and not isinstance(found, Traits):
        raise UserError(f"TRAITS of {_name(task)} is {found!r}, expected a mimbench.task.Traits")
    return found or Traits()


def load_task(name: str) -> Task:
    """Return the task module of a dotted name such as `package.module`."""
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


def _name(task: Task) -> str:
    return str(getattr(task, "__name__", task))
