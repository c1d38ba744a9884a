"""The record of a training run: figures kept on the device, one JSON line now and then, TensorBoard."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mimbench.system.files import write_text
from mimbench.system.progress import Progress
from mimbench.training.learner import RunContext, StepInfo

logger = logging.getLogger(__name__)


class Meter:
    """Running sums of a step's figures, read by the host only when somebody wants to see them."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add one micro-step's figures."""
        for name, value in figures.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def means(self) -> dict[str, float]:
        """Return the means over all micro-steps and processes since the last reset (one host read)."""
        if not self.count:
            return {}
        stacked = torch.stack([*self.sums.values()]) / self.count
        if dist.is_initialized():
            dist.all_reduce(stacked)
            stacked /= dist.get_world_size()
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def reset(self) -> None:
        """Start over."""
        self.sums, self.count = {}, 0

    def state(self) -> dict[str, Any]:
        """Return the sums as plain data."""
        return {"count": self.count, "sums": {k: v.item() for k, v in self.sums.items()}}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the sums that `state` returned."""
        self.count = state["count"]
        self.sums = {
            k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in state["sums"].items()
        }


class Journal:
    """metrics.jsonl and TensorBoard of one run; a resumed run continues both without a seam."""

    def __init__(self, out: Path, *, resumed_at: int, tensorboard: bool) -> None:
        self.path = out / "metrics.jsonl"
        self._drop_after(resumed_at)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = _summary_writer(out / "tensorboard", resumed_at) if tensorboard else None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Record the figures of a step."""
        plain = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self.file.write(json.dumps({"step": step, **plain}, allow_nan=False) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Finish both files."""
        self.file.close()
        if self.board is not None:
            self.board.close()

    def _drop_after(self, step: int) -> None:
        # an interrupted run may have written lines that the resumed one will write again
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        write_text(self.path, "".join(f"{line}\n" for line in lines if _is_until(line, step)))


class Record:
    """What the main process tells while a run goes on: the live line, and the journal."""

    def __init__(self, context: RunContext, at: StepInfo, *, total: int, tensorboard: bool) -> None:
        self.bar = Progress(context.label, total, start=at.step)
        self.journal = Journal(context.out, resumed_at=at.step, tensorboard=tensorboard)
        self.since, self.step = time.monotonic(), at.step

    def count(self) -> None:
        """Count one step as done."""
        self.bar.step()

    def show(
        self, at: StepInfo, figures: Mapping[str, float], lr: float, device: torch.device
    ) -> None:
        """Record the means since the last time, with speed and memory."""
        now = time.monotonic()
        images, spent = (at.step - self.step) * at.batch, max(now - self.since, 1e-9)
        self.since, self.step = now, at.step
        speed, memory = images / spent, peak_memory(device)
        more = {"lr": lr, "images_per_second": speed, "memory_gib": memory}
        self.journal.write(at.step, {"epoch": at.fraction, **figures, **more})
        shown = {**figures, "img/s": speed, "GiB": memory}
        del shown["broken_images"]
        self.bar.step(0, **shown)

    def close(self, *, finished: bool) -> None:
        """Finish the files, and the line of a run that came to its end."""
        self.journal.close()
        if finished:
            self.bar.close()


def _is_until(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError):
        # cut off when the process was killed
        return False


def _summary_writer(folder: Path, resumed_at: int) -> Any:
    try:
        # an optional package, and slow to import
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError:
        logger.warning("no TensorBoard files: the package tensorboard is not installed")
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)


def peak_memory(device: torch.device) -> float:
    """Return the most memory used so far in GiB: the device's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
