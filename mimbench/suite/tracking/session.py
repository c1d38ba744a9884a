"""The parent's side of `--track`: start the follower, say when the runs ended, warn once if it fails."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.preflight import child_environment
from mimbench.benchmarks.run_config import CONFIG_FILE
from mimbench.suite.running.screen import last_lines
from mimbench.suite.tracking.run import TrackedRun, shareable, stamp
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError, printable

logger = logging.getLogger(__name__)
TRACKING_LOG = "tracking.log"
POLL = 2.0
PATIENCE = 60.0
"""Seconds in which the follower may send the last points."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""What clients would report about themselves; who wants that sets the variable."""
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}


def require_client(name: str) -> None:
    """Refuse a client whose package is missing, before anything starts."""
    if name and find_spec(name) is None:
        raise UserError(
            f"--track {name} needs the package {PACKAGES[name]}, which is not installed:\n"
            f"{sys.executable} -m pip install {PACKAGES[name]}"
        )


def tracked_cell(cell: Cell) -> TrackedRun:
    """Return a cell as clients see it: the recipe, the protocol and the checkpoint, no place on a disk."""
    run, who = cell.run, cell.candidate.weights
    return TrackedRun(
        folder=cell.folder.resolve(),
        name=f"{cell.folder.name} {who['name']}",
        group=cell.candidate.folder,
        before=stamp(cell.folder / CONFIG_FILE),
        config={
            "benchmark": run.benchmark,
            "task": run.task,
            "task_version": cell.version,
            "profile": run.profile,
            "dataset": run.dataset,
            "protocol": cell.protocol,
            "main_metric": cell.main_metric,
            "checkpoint": shareable(dict(who)),
            "recipe": shareable(to_mapping(run.config)),
            "changed": shareable(to_mapping(run.overrides)),
        },
    )


@contextmanager
def tracked(client: str, runs: Sequence[TrackedRun], log: Path) -> Iterator[None]:
    """Follow runs while the body works; of several processes the main one does.

    Args:
        client: wandb, mlflow or trackio; empty: nothing is followed.
        runs: Folders, and what to call them.
        log: Where the client's own messages go.
    """
    if not client or int(os.environ.get("RANK", "0")):
        yield
        return
    session = TrackingSession(client, runs, log)
    session.start()
    ending: Literal["done", "left"] = "left"
    try:
        yield
        ending = "done"
    finally:
        session.close(ending)


class TrackingSession:
    """A follower at work beside this process."""

    def __init__(self, client: str, runs: Sequence[TrackedRun], log: Path) -> None:
        self.client, self.log = client, log
        plain = [to_mapping(run) for run in runs]
        self.orders = json.dumps({"client": client, "poll": POLL, "runs": plain})
        self.closing = False

    def start(self) -> None:
        """Start the follower, and a thread that notices its end."""
        self.process = self._begin()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def close(self, ending: str) -> None:
        """Let the follower send the last points; one that failed gets another chance."""
        self.closing = True
        code = self._end(ending)
        if code:
            self.process = self._begin()
            code = self._end(ending)
        if code != 0:
            logger.warning(
                "not everything reached %s: %s; the same command sends the rest",
                self.client,
                self._last_words() if code else f"no end within {PATIENCE:g} seconds",
            )

    def _begin(self) -> "subprocess.Popen[bytes]":
        environment: Mapping[str, Any] = {**QUIET, **child_environment()}
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "mimbench.suite.tracking.follower"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is ours: the follower ends by our word
                start_new_session=True,
            )
        self._say(process, self.orders)
        return process

    def _end(self, ending: str) -> int | None:
        """Return how the follower ended; None if it had to be stopped."""
        self._say(self.process, ending)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            if self.process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    self.process.stdin.close()

    def _say(self, process: "subprocess.Popen[bytes]", text: str) -> None:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(f"{text}\n".encode())
                process.stdin.flush()

    def _watch(self) -> None:
        if self.process.wait() and not self.closing:
            logger.warning(
                "tracking in %s stopped: %s; the evaluation goes on, and the rest is sent at its "
                "end; log in %s",
                self.client,
                self._last_words(),
                self.log,
            )

    def _last_words(self) -> str:
        return printable((last_lines(self.log) or ["no message"])[-1].strip(), 200)
