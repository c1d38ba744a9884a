"""What watches a training: its saved states, its curve, its progress, and the signal to leave."""

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, write_text
from mimbench.system.progress import Progress
from mimbench.training.curve import Curve
from mimbench.training.watch import Preempted, StopSignals

logger = logging.getLogger(__name__)


class Checkpoints(DetectionCheckpointer):
    """detectron2's checkpointer, writing whole files or none."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, trainer and `kwargs`, then point `last_checkpoint` at the file."""
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        with atomic_path(Path(self.save_dir) / f"{name}.pth") as part:
            torch.save({"model": self.model.state_dict(), **state, **kwargs}, part)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest file."""
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

    def read_last(self) -> bool:
        """Load the newest state, if there is one."""
        if not self.has_checkpoint():
            return False
        path = self.get_checkpoint_file()
        try:
            self.load(path)
        except (AssertionError, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise UserError(
                f"the training state {path} cannot be read: {error}; "
                "delete the run's folder to start over"
            ) from error
        return True


class CurveWriter(EventWriter):
    """Hands detectron2's figures to the run's curve."""

    def __init__(self, out: Path, start: int) -> None:
        self.curve, self.written = Curve(out, resumed_at=start), start

    def write(self) -> None:
        """Append the newest value of each figure that is newer than the last line."""
        storage = get_event_storage()
        fresh = {k: v for k, (v, at) in storage.latest().items() if at + 1 > self.written}
        if fresh:
            self.written = storage.iter + 1
            self.curve.write(self.written, fresh)

    def close(self) -> None:
        """Close the file."""
        self.curve.close()


class ProgressHook(HookBase):
    """Shows progress, loss and time left."""

    def before_train(self) -> None:
        """Start counting where training starts."""
        trainer = self.trainer
        self.bar = Progress("detection", trainer.max_iter, start=trainer.start_iter)

    def after_step(self) -> None:
        """Count a step."""
        latest = self.trainer.storage.latest()
        figures = {"loss": "total_loss", "lr": "lr"}
        self.bar.step(1, **{k: float(latest[v][0]) for k, v in figures.items() if v in latest})

    def after_train(self) -> None:
        """End the line."""
        self.bar.close()


class StopOnSignal(HookBase):
    """After a signal to leave: save the state and go, all processes after the same step."""

    def __init__(self, checkpoints: Checkpoints, signals: StopSignals) -> None:
        self.checkpoints, self.signals = checkpoints, signals

    def after_step(self) -> None:
        """Leave if all processes agree."""
        if not self.signals.agreed():
            return
        step = self.trainer.iter
        self.checkpoints.save(f"model_{step:07d}", iteration=step)
        logger.warning("left on a signal after step %d; run again to go on", step + 1)
        raise Preempted
