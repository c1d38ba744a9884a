"""Progress with time left: a live line on a terminal, now and then a plain line in a file."""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TextIO, TypeVar, cast

T = TypeVar("T")

INTERVAL = "MIMBENCH_PROGRESS_SECONDS"
PLAIN_SECONDS = float(os.environ.get(INTERVAL, "15"))
LIVE_SECONDS = 0.2


def clock(seconds: float) -> str:
    """Return a duration as a person reads it: 42s, 3m07s, 2h05m, 3d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def fitted(line: str) -> str:
    """Return as many whole words of a line as the terminal is wide: a longer one could not be overwritten."""
    room = shutil.get_terminal_size((80, 24)).columns - 1
    if len(line) <= room:
        return line
    return line[: room + 1].rpartition(" ")[0] or line[:room]


class Progress:
    """Counts units of work and shows rate, time left and a few figures on stderr."""

    def __init__(
        self, label: str, total: int, *, start: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.done, self.start = label, total, start, start
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.began = self.shown = time.monotonic()
        self.shown = -1
        """Units that the last plain line spoke of."""
        self.figures: dict[str, float] = {}
        self.width = 0

    def step(self, units: int = 1, **figures: float) -> None:
        """Count `units` as done; show the line when it is due."""
        self.done += units
        self.figures.update(figures)
        now = time.monotonic()
        if now - self.shown >= (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            self.shown = now
            self._show(self.line(now))

    def line(self, now: float) -> str:
        """Return the line: label, share, rate, time left, figures."""
        spent, fresh = now - self.began, self.done - self.start
        left = clock((self.total - self.done) * spent / fresh) if fresh else "?"
        figures = " ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        share = 100 * self.done / max(1, self.total)
        line = f"{self.label} {self.done}/{self.total} {share:.0f}% {clock(spent)} left {left} {figures}"
        return line.rstrip()

    def close(self) -> None:
        """Show the last state and end the line."""
        self._show(self.line(time.monotonic()), end=True)

    def _show(self, line: str, *, end: bool = False) -> None:
        if self.live:
            line = fitted(line)
            self.stream.write("\r" + line.ljust(self.width) + ("\n" if end else ""))
            self.width = len(line)
        elif not end or self.shown != self.done:
            self.stream.write(line + "\n")
        self.shown = self.done
        self.stream.flush()


def track(items: Iterable[T], label: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing progress."""
    bar = Progress(label, len(cast(Sized, items)) if total is None else total)
    for item in items:
        yield item
        bar.step()
    bar.close()
