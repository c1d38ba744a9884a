"""How a command ends: one table of exit codes, one form of error message."""

import contextlib
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

from mimbench.system.errors import UserError, printable

P = ParamSpec("P")


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PREEMPTED = 75
    """The number is sysexits' "temporary failure": schedulers know it."""
    INTERRUPTED = 130
    CLOSED_PIPE = 141


MEANINGS = {
    ExitCode.OK: "Everything asked for is there: every requested cell has a number, every check passed.",
    ExitCode.FAILED: "A cell has no number, a check found a fault, or mimbench itself has a bug (with a traceback).",
    ExitCode.USAGE: "The command line, a configuration or an input file is wrong; the message says what to change.",
    ExitCode.PREEMPTED: "SIGTERM, SIGUSR1 or SIGHUP asked a training to leave; its state is saved. Run the same command again.",
    ExitCode.INTERRUPTED: "Ctrl-C, a closed terminal, or SIGTERM while `run` was at work. Run the same command again: finished cells are kept.",
    ExitCode.CLOSED_PIPE: "The reader of the output went away, as in `mimbench table | head`.",
}
"""What docs/reference says about each code."""


def run_command(body: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    """Run a command; return its exit code.

    Args:
        body: The command. A `UserError` becomes a message; any other exception keeps its traceback.
        *args: What it is called with.
        **kwargs: The same.
    """
    try:
        return body(*args, **kwargs)
    except UserError as error:
        report_error(str(error))
        return ExitCode.USAGE
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be what went away
            sys.stderr.write("interrupted\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CLOSED_PIPE


def report_error(message: str) -> None:
    """Write `error: ...` to stderr: one line, then what to type if there is more, indented."""
    first, *more = map(printable, message.split("\n"))
    sys.stderr.write("".join([f"error: {first}\n", *(f"  {line}\n" for line in more)]))
