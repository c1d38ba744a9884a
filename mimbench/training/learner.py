"""The parts of a training run: its configuration, its context and progress, and the learner."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from mimbench.system.runtime import Precision, Ranks
from mimbench.task import Machine
from mimbench.training.batches import Batch, Repeats

LAST, BEST, FAILED = "last.pt", "best.pt", "failed.pt"
"""Training states in a run's folder of checkpoints; those that stay are called epoch-0100.pt."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, how much at once, how precise, and what is kept."""

    epochs: int
    batch: int
    """Images of one optimizer step, over all processes and micro-steps."""
    steps: int | None = None
    """Stop after so many optimizer steps; the schedule still spans all epochs."""
    seed: int = 0
    precision: Precision = "fp32"
    clip_grad: float | None = None
    """Largest total norm of the gradient."""
    log_every: int = 50
    """Optimizer steps between two lines of metrics.jsonl."""
    save_every: int = 0
    """Optimizer steps between two saves of last.pt; 0 saves at the end of each epoch."""
    keep_every: int = 0
    """Epochs between two checkpoints that stay; 0 keeps the last and the best only."""
    best: str = "loss"
    """The figure (an epoch's mean, or the learner's own at its end) that chooses best.pt."""
    best_is: Literal["smallest", "largest"] = "smallest"
    max_broken: float = 0.001
    """Share of the data set that may be unreadable."""
    tensorboard: bool = True
    repeats: Repeats | None = None
    """Several views of an image in one epoch."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """How far a run is."""

    step: int
    """Optimizer steps completed."""
    steps_per_epoch: int
    epochs: int
    batch: int
    """The effective batch."""
    first: int = 0
    """Place of this micro-batch's first image in the effective batch, over all processes."""

    @property
    def epoch(self) -> int:
        """The epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """The fractional epoch: what schedules are functions of."""
        return self.step / self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole schedule."""
        return self.epochs * self.steps_per_epoch


class Learner:
    """What is trained and what a step is; only `loss` and `rate` must be written.

    Attributes:
        model: What is trained; `fit` wraps it for several processes and hands the wrapper to `loss`.
        optimizer: Its optimizer, fused if possible: then a non-finite loss is guarded on the device.
    """

    model: nn.Module
    optimizer: Optimizer
    sometimes: frozenset[str] = frozenset()
    """Figures that `end_epoch` measures in some epochs only; in the others they are absent, never 0."""

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return scalars by name: `loss` is differentiated, all are recorded.

        Args:
            model: `self.model`, wrapped; every trained parameter must be used through it.
            batch: One micro-batch, its data on the model's device.
            at: Where the run stands.
        """
        raise NotImplementedError

    def rate(self, at: StepInfo) -> float:
        """Return the learning rate of the optimizer step that follows `at`."""
        raise NotImplementedError

    def begin_epoch(self, at: StepInfo) -> None:
        """Prepare an epoch; also called when a run resumes within it."""

    def before_update(self, at: StepInfo) -> None:
        """Act on gradients that are complete, unscaled and clipped."""

    def after_update(self, at: StepInfo) -> None:
        """Act after each optimizer step, once: moving averages, further optimizers."""

    def unscored(self, at: StepInfo) -> bool:
        """Tell whether the epoch that ended at `at` is still to be scored by `end_epoch`.

        If so, the state is saved before that as well, and a run that was killed meanwhile only
        scores; without a long `end_epoch` there is no need to.
        """
        del at
        return False

    def end_epoch(self, at: StepInfo) -> dict[str, float]:
        """Return further figures of the epoch that ended, such as a validation accuracy."""
        del at
        return {}

    def saved(self, checkpoint: Path, at: StepInfo) -> None:
        """Act on rank 0 before the final state, or one that stays, is written: exports.

        Args:
            checkpoint: Where that state will be; a run killed before it is there calls this again.
            at: Where the run stands.
        """

    def state(self) -> dict[str, Any]:
        """Return what else a continuation needs: tensors and plain data."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Around a run: its machine, its process, its folder, and the configuration it belongs to."""

    out: Path
    digest: str
    """Identifies the configuration: a folder never mixes two of them."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The configuration as plain data, kept in every state for whoever reads one by itself."""
    ranks: Ranks = field(default_factory=Ranks)
    machine: Machine = field(default_factory=Machine)
    label: str = "train"
    start_epoch: int = 0
    """Epochs done elsewhere: where a new run takes up the schedule."""

    @property
    def checkpoints(self) -> Path:
        """The folder of training states."""
        return self.out / "checkpoints"
