"""Clocks that hold on a shared machine: processor time, paired runs, the machine's own limit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

Mark = Callable[[str], None]
"""Called with a name: the time since the call before belongs to it."""


def ignore(name: str) -> None:
    """Take no notice of a mark."""
    del name


class Stopwatch:
    """Divides a step's time among names.

    A GPU is timed by its own events. On a CPU with one thread the clock is the process's processor
    time, which leaves out what other programs take away; with more threads it is the wall's.
    """

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.cpu_time = not self.gpu and torch.get_num_threads() == 1
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin a new step."""
        if self.gpu:
            torch.cuda.synchronize()
        self.marks = []
        self.mark("")

    def mark(self, name: str) -> None:
        """Give the time since the last mark to `name`."""
        if self.gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((name, event))
        else:
            self.marks.append((name, time.process_time() if self.cpu_time else time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Return seconds by name, in the order in which the names first came."""
        if self.gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, before), (name, after) in pairwise(self.marks):
            if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                seconds = before.elapsed_time(after) / 1e3
            else:
                assert isinstance(before, float)
                assert isinstance(after, float)
                seconds = after - before
            found[name] = found.get(name, 0.0) + seconds
        return found


@dataclass(frozen=True)
class Spread:
    """What repeated measurements say."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({min(self.values):.2f} to {max(self.values):.2f})"


def ratios(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Return one / other, pair by pair: both of a pair met the same neighbours."""
    return Spread(tuple(a / b for a, b in zip(one, other, strict=True)))


def gemm_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return how many FLOPs a second a large matrix product reaches: nothing here can be faster."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    watch = Stopwatch(device)
    best = 0.0
    for _ in range(4):
        watch.start()
        torch.mm(a, b)
        watch.mark("gemm")
        best = max(best, 2 * side**3 / max(watch.read()["gemm"], 1e-9))
    return best
