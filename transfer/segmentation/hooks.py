"""What happens around training steps: exact resume, seeds, the curve, progress with time left."""

import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from typing_extensions import override

from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.system.progress import Progress
from mimbench.system.seeds import sequence_words
from mimbench.training.curve import Curve
from mimbench.training.identity import check_state
from mimbench.training.watch import Preempted, StopSignals
from transfer.segmentation.loop import trained_parts

logger = logging.getLogger(__name__)

STATE_FILE = "state.pth"
SAVE_SECONDS = 600.0
"""Between saved states; a preemption signal saves at once."""
LOG_LINES = 1_000
"""Lines in the curve of a whole run, about."""


class StateHook(Hook):
    """Saves what a run needs to continue exactly, as plain data that loads without unpickling.

    mmengine's own checkpoints hold HistoryBuffer objects, which torch refuses to load safely.

    Args:
        file: Where the state goes.
        digest: Identity of configuration and weights; another run's state is never continued.
        signals: Tell when to leave, to all processes after the same step.
    """

    priority = "LOWEST"

    def __init__(self, file: Path, digest: str, signals: StopSignals):
        self.file, self.digest, self.signals = file, digest, signals
        self.saved = time.monotonic()

    @override
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Save when it is time or when a signal came; after a signal, leave."""
        step, leave = batch_idx + 1, self.signals.agreed()
        due = time.monotonic() - self.saved >= SAVE_SECONDS
        if get_rank() == 0 and (due or leave):
            self.save(runner, step)
        if leave:
            logger.warning(
                "stopped by a signal: saved after step %d; run the same command to continue", step
            )
            raise Preempted

    def save(self, runner: Runner, step: int) -> None:
        """Write the state atomically."""
        parts = trained_parts(runner)
        value = {
            "digest": self.digest,
            "step": step,
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "schedules": [plain(schedule.state_dict()) for schedule in parts.schedules],
        }
        with atomic_path(self.file) as part:
            torch.save(value, part)
        self.saved = time.monotonic()


def plain(value: Any) -> Any:
    """Return the numbers, texts and lists of a state; NumPy scalars become Python's."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def read_state(file: Path, digest: str) -> dict[str, Any] | None:
    """Return the saved state of this very run; None if there is none, an error if it is another's."""
    if not file.is_file():
        return None
    state = torch.load(file, map_location="cpu", weights_only=True)
    check_state(file.parent, state["digest"], digest)
    return state


class StepSeedHook(Hook):
    """Seeds dropout and drop path from seed, step and rank, so that no generator state is kept."""

    def __init__(self, seed: int):
        self.seed = seed

    @override
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch for this step."""
        first, second = sequence_words(self.seed, batch_idx, get_rank())
        torch.manual_seed(first << 31 ^ second)


class CurveHook(Hook):
    """Shows progress with time left, records the curve, and stops when the loss is no number.

    Args:
        out: The run's folder.
        total: Optimiser steps of the whole run.
        start: Steps already done.
    """

    def __init__(self, out: Path, total: int, start: int):
        self.out, self.total, self.start = out, total, start
        self.every = max(1, min(50, total // LOG_LINES or 1))
        self.curve: Curve | None = None

    @override
    def before_train(self, runner: Runner) -> None:
        """Open the curve; lines after the resumed step are dropped."""
        if get_rank() == 0:
            self.curve = Curve(self.out, resumed_at=self.start)
            self.progress = Progress("train", self.total, start=self.start)

    @override
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Count the step; every so often read the loss."""
        step = batch_idx + 1
        figures: dict[str, float] = {}
        if step % self.every == 0 or step == self.total:
            figures = {name: float(value) for name, value in outputs.items()}
            self._stop_if_lost(step, figures["loss"])
        if self.curve is None:
            return
        if figures:
            rates = [group["lr"] for group in trained_parts(runner).optimizer.param_groups]
            self.curve.write(step, {**figures, "lr": max(rates)})
            self.progress.step(loss=figures["loss"], lr=max(rates))
        else:
            self.progress.step()

    @override
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put scores on the way into the curve."""
        if self.curve is not None and metrics:
            self.curve.write(runner.iter, {k: float(v) for k, v in metrics.items()})

    @override
    def after_train(self, runner: Runner) -> None:
        """Close the curve."""
        if self.curve is not None:
            self.progress.close()
            self.curve.close()

    def _stop_if_lost(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; try a lower learning rate (lr=...), "
                "or precision=bf16 instead of fp16"
            )


class TestProgressHook(Hook):
    """Shows how far a test is."""

    def __init__(self, label: str):
        self.label = label

    @override
    def before_test_epoch(self, runner: Runner) -> None:
        """Start counting this process's pictures."""
        self.progress = (
            Progress(self.label, len(runner.test_dataloader)) if not get_rank() else None
        )

    @override
    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Count one picture."""
        if self.progress:
            self.progress.step()

    @override
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the last line."""
        if self.progress:
            self.progress.close()
