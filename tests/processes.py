"""Processes for tests that kill them or run several: cheap to start, and free of inherited locks."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def clean_processes() -> ForkServerContext:
    """Return a context whose processes fork from a server that only ever imported torch.

    A fork of the test process itself inherits the locks that its other threads hold at that moment,
    and then hangs now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "mimbench.loop"])
    return context
