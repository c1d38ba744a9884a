"""The record of a training run: figures summed on the device, shown and written now and then."""

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mimbench.system.memory import peak_memory
from mimbench.system.progress import Progress
from mimbench.training.curve import Curve
from mimbench.training.learner import RunContext, StepInfo


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


class Record:
    """What the main process tells while a run goes on: the live line, and the curve."""

    def __init__(self, context: RunContext, at: StepInfo, *, total: int, tensorboard: bool) -> None:
        self.bar = Progress(context.label, total, start=at.step)
        self.curve = Curve(context.out, resumed_at=at.step, tensorboard=tensorboard)
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
        speed, memory = images / spent, peak_memory(device) / 2**30
        more = {"lr": lr, "images_per_second": speed, "memory_gib": memory}
        self.curve.write(at.step, {"epoch": at.fraction, **figures, **more})
        shown = {**figures, "img/s": speed, "GiB": memory}
        del shown["broken_images"]
        self.bar.step(0, **shown)

    def close(self, *, finished: bool) -> None:
        """Finish the files, and the line of a run that came to its end."""
        self.curve.close()
        if finished:
            self.bar.close()
