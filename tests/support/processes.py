"""Processes for tests that kill them or run several: cheap to start, and free of inherited locks."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

LONGEST = 200
"""Seconds after which a process is given up."""


def clean_processes() -> ForkServerContext:
    """Return a context whose processes fork from a server that imported our modules and did no more.

    A fork of the test process itself inherits the locks that its other threads hold at that moment,
    and then hangs now and then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "mimbench.training.loop", "pretrain.__main__", "pretrain.train"]
    )
    return context


def kill_at(sign: Path, target: Callable[..., None], *args: Any) -> None:
    """Run `target` in a process of its own and kill it once the file `sign` is there."""
    process = clean_processes().Process(target=target, args=args)
    process.start()
    deadline = time.monotonic() + LONGEST
    while not sign.exists() and time.monotonic() < deadline:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_processes(target: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[int | None]:
    """Run the target once for each tuple of arguments, all at once; return the exit codes.

    A process that is not done in time has None, and is killed.
    """
    context = clean_processes()
    processes = [context.Process(target=_as_usual, args=(target, given)) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _as_usual(target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    # otherwise loader workers would come from the server too, slowly, and outlive a killed parent
    multiprocessing.set_start_method("fork", force=True)
    target(*arguments)


def as_two_ranks(target: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """Run the target in two processes that find each other as torchrun's do; return the exit codes."""
    port = free_port()
    return in_processes(_rank, *((rank, port, target, arguments) for rank in (0, 1)))


def _rank(rank: int, port: int, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(target(*arguments))
