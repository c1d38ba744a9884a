"""What a node of a cluster runs for one cell: its processes, and the scheduler's request that they stop."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from mimbench.suite.running.launch import Slot, eval_command, start

PORT = 29_400
SAVING = 60.0
"""Seconds that a preempted task may take to save its state; torchrun gives its processes 30."""
GRACE = 120.0
"""Seconds after SIGTERM in which a scheduler ends a job; if it does not, the cell goes on."""
POLL = 0.2


class CellJob:
    """What a node runs; pickled by submitit, so it holds plain values only."""

    def __init__(self, folder: str, gpus: int, nodes: int) -> None:
        self.folder, self.gpus, self.nodes = folder, gpus, nodes

    def __call__(self) -> int:
        """Run the cell's processes on this node; return their exit code."""
        asked: list[float] = []
        before = signal.signal(signal.SIGTERM, lambda *_: self._leave(asked))
        try:
            while True:
                self.process = start(self.command(), Path(self.folder), Slot())
                while (code := self.process.poll()) is None:
                    time.sleep(POLL)
                if not code or not asked:
                    return code
                # asked to stop: the scheduler ends this job in a moment and queues it again; an
                # exit code now would count as the job's result
                time.sleep(max(0.0, asked[-1] + GRACE - time.monotonic()))
                asked.clear()
        finally:
            signal.signal(signal.SIGTERM, before)

    def command(self) -> list[str]:
        """Return what runs the cell."""
        return eval_command(
            Path(self.folder), max(1, self.gpus), self.nodes, endpoint=self._endpoint()
        )

    def _leave(self, asked: list[float]) -> None:
        asked.append(time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)

    def _endpoint(self) -> str:
        if self.nodes == 1:
            return ""
        import submitit  # noqa: PLC0415 - optional, only clusters need it

        hosts = submitit.JobEnvironment().hostnames
        # jobs may share a node: each takes a port of its own
        return f"{hosts[0]}:{PORT + int(os.environ.get('SLURM_JOB_ID', '0')) % 1000}"

    def checkpoint(self) -> Any:
        """Let the task save, and ask to be queued again when preempted: it goes on from its state."""
        import submitit  # noqa: PLC0415

        if process := vars(self).get("process"):
            _end(process.pid)
        return submitit.helpers.DelayedSubmission(type(self)(self.folder, self.gpus, self.nodes))


def _end(child: int) -> None:
    """Ask a child's process group to save and end, then insist.

    This runs in a signal handler, maybe in the middle of a call of the same `Popen`, whose lock would
    then never come free: the child is looked at without it.
    """
    for sign, patience in ((signal.SIGTERM, SAVING), (signal.SIGKILL, POLL)):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(child, sign)
            until = time.monotonic() + patience
            while time.monotonic() < until:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
                time.sleep(POLL)
