"""Processes for tests that kill them or run several: cheap to start, and free of inherited locks."""

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from typing import Any


class CleanProcesses:
    """Makes processes that fork from a server which has only ever imported things.

    A fork of the test process itself inherits the locks that its other threads hold at that moment,
    and then hangs now and then.
    """

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["mimbench.loop", "pretrain.__main__"])

    def Process(  # noqa: N802
        self,
        *,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> ForkServerProcess:
        """Return a process that is yet to be started."""
        return self.context.Process(target=_as_usual, args=(target, args, dict(kwargs or {})))


def _as_usual(
    target: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    # otherwise loader workers would come from the server too, slowly, and outlive a killed parent
    multiprocessing.set_start_method("fork", force=True)
    target(*args, **kwargs)


def clean_processes() -> CleanProcesses:
    """Return what makes clean processes."""
    return CleanProcesses()
