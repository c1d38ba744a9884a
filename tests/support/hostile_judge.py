"""A judge that reads each hostile file in a process of its own, with a clock and a scale."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.hostile_case import Case

SECONDS, GIGABYTE = 10.0, 1 << 30
"""What reading one file may take: of one core's time, and of memory beyond the file's own size."""
ENDLESS = 60.0
"""By the clock: long enough that a busy machine is not taken for a file that never ends."""


class Judge:
    """A process that reads files, started anew when one of them ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
            self.process = None

    def verdict(self, path: Path, layout: str) -> dict[str, Any]:
        """Return what became of a file: outcome, message, seconds, bytes of memory at most."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.hostile_reader"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == "ready\n"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{layout} {os.fsencode(path).hex()}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], ENDLESS)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            code = self.process.poll()
            self._stop()
            return {"outcome": "endless" if code is None else f"ended with {code}", "message": ""}
        return json.loads(line)


def fault(case: Case, path: Path, verdict: dict[str, Any]) -> str:
    """Return in a word what is wrong with a verdict, or nothing."""
    outcome, message = verdict["outcome"], verdict["message"]
    if outcome not in ("read", "refused"):
        return outcome
    size = os.stat(path).st_size if os.path.isfile(path) else 0  # noqa: PTH113, PTH116 (never raises)
    if verdict["seconds"] > SECONDS:
        return "slow"
    if verdict["memory"] > GIGABYTE + size:
        return "memory"
    if outcome == "read" and not (case.harmless and verdict["same"]):
        return "accepted"
    if not verdict["shown"].replace("\n", "").isprintable():
        return "unprintable"
    unnamed = path.name.isprintable() and path.name not in message
    if outcome == "refused" and ("\n" in message or unnamed):
        return "message"
    return ""
