"""Processes for tests that kill them or run several: cheap to start, and free of inherited locks."""

import multiprocessing
from multiprocessing.context import ForkServerContext


def clean_processes() -> ForkServerContext:
    """Return a context whose processes fork from a server that has only ever imported things.

    A fork of the test process itself inherits the locks that its other threads hold at that moment,
    and then hangs now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mimbench.loop", "pretrain.__main__"])
    return context
