"""Try something in a child process: what crashes, hangs or pollutes there does so alone."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 300  # a first import on a busy machine takes minutes


class ChildError(Exception):
    """The child did not succeed; the message is its own last word, in one line."""


def try_script(script: str, arguments: Sequence[str] = (), *, seconds: float = _SECONDS) -> str:
    """Run `script` in a new Python and return the last line it printed.

    Raises:
        ChildError: it failed, crashed or took longer than `seconds`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=environment,
            cwd=Path(sys.prefix),  # `-c` puts the current folder first: none of ours, none of yours
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"no answer within {seconds:.0f} s") from None
    if done.returncode < 0:
        raise ChildError(f"crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise ChildError(_last_line(done.stderr) or f"exit code {done.returncode}")
    return _last_line(done.stdout)


def _last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
