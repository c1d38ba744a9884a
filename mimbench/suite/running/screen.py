"""The runner's own progress on stderr: the latest line of each running cell's log."""

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from mimbench.system.progress import LIVE_SECONDS, clock, fitted

logger = logging.getLogger(__name__)
SHOWN_LINES = 30
PLAIN_SECONDS = 30.0


class Shown(Protocol):
    """A cell at work."""

    @property
    def label(self) -> str:
        """Name of the cell."""
        ...

    @property
    def log(self) -> Path:
        """Where its output goes."""
        ...

    @property
    def began(self) -> float:
        """When it was started, by the monotonic clock."""
        ...


def last_lines(path: Path, count: int = SHOWN_LINES) -> list[str]:
    """Return the last lines of a log that are not empty."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - max(16384, 160 * count)))
        text = file.read().decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][
        -count:
    ]


class Screen:
    """One line on a terminal, plain lines now and then in a file."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.width = total, 0, 0
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()

    def next(self) -> str:
        """Count one cell as ended; return '[3/12]'."""
        self.done += 1
        self._clear()
        return f"[{self.done}/{self.total}]"

    def show(self, running: Sequence[Shown]) -> None:
        """Show what runs, when it is due."""
        now = time.monotonic()
        if not running or now - self.shown < (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            return
        self.shown = now
        lines = [self._line(job, now) for job in running]
        if self.live:
            text = fitted(lines[int(now / 2) % len(lines)])
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)
        else:
            for line in lines:
                logger.info("%s", line)

    def _line(self, job: Shown, now: float) -> str:
        latest = (last_lines(job.log, 1) or ["starting"])[0]
        return f"[{self.done}/{self.total} done] {job.label} {clock(now - job.began)} | {latest}"

    def _clear(self) -> None:
        if self.live and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            self.width = 0
