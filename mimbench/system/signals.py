"""Signals that ask a process to leave: a scheduler's, a closed terminal's, Ctrl-C's."""

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any

from mimbench.system.exit_codes import ExitCode

LEAVE = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
"""A scheduler's wish, its warning ahead of time, and the end of the terminal."""


def left_early(code: int) -> bool:
    """Return whether an exit code says that a signal stopped a process, saved or not."""
    return code == ExitCode.PREEMPTED or -code in (*LEAVE, signal.SIGINT)


def ignored(number: int) -> bool:
    """Return whether the process was started to ignore a signal, as `nohup` does with SIGHUP."""
    return signal.getsignal(number) is signal.SIG_IGN


def leave_signals_to_parent(worker: int = 0) -> None:
    """Make a loader's worker ignore what asks its parent to leave; it ends when the parent does.

    Slurm and terminals signal every process of a group. A worker that went first would end the
    parent with an error before it could save. At its own end the parent asks workers to leave by
    the same signal and waits for them: `_end_workers` is quicker.
    """
    del worker
    for number in (*LEAVE, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


# before multiprocessing's own end, which terminates daemons and waits for ever if they ignore it
Finalize(None, _end_workers, exitpriority=100)


class Interrupts:
    """Turns the first request to leave into KeyboardInterrupt, as Ctrl-C; later ones change nothing.

    A closed terminal sends several at once, and the second must not cut short what the first began:
    letting the children save.
    """

    def __init__(self, numbers: Sequence[int] = LEAVE) -> None:
        self.numbers = [n for n in numbers if not ignored(n)]
        self.previous: dict[int, Any] = {}
        self.asked = 0

    def __enter__(self) -> "Interrupts":
        for number in self.numbers:
            self.previous[number] = signal.signal(number, self._leave)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        del frame
        if not self.asked:
            self.asked = number
            raise KeyboardInterrupt
