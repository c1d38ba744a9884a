"""The process beside a run that reads its files and sends what is new; it alone loads a client.

A client may fail, hang or end the process: the evaluation does not notice. Its parent writes the runs
to stdin, and a word at the end; a parent that dies closes stdin, and this process ends as well.
"""

import json
import math
import os
import select
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimbench.benchmarks.run_config import CONFIG_FILE, RESULT_FILE
from mimbench.results.record import Result, read_result
from mimbench.suite.tracking.clients import CLIENTS, Ending, Point, TrackingClient
from mimbench.suite.tracking.run import SentMark, TrackedRun, read_mark, stamp, write_mark
from mimbench.system.files import file_digest
from mimbench.training.curve import CURVE_FILE, read_curve


class Follower:
    """Brings a client up to what the runs' folders hold."""

    def __init__(self, name: str, client: TrackingClient, runs: Sequence[TrackedRun]) -> None:
        self.name, self.client, self.runs = name, client, runs
        self.active: dict[Path, SentMark] = {}
        self.looked: dict[Path, Any] = {}

    def advance(self) -> None:
        """Send what is new in any folder."""
        for run in self.runs:
            stamps = [stamp(run.folder / name) for name in (CONFIG_FILE, CURVE_FILE, RESULT_FILE)]
            if stamps[0] is None or self.looked.get(run.folder) == stamps:
                continue
            self.looked[run.folder] = stamps
            if not run.ends_with_result or stamps[0] != run.before or _done_before(run):
                self._advance(run)

    def _advance(self, run: TrackedRun) -> None:
        # a folder that was set aside took its mark along: the same place is another run now
        known = read_mark(run.folder, self.name)
        path = run.folder / RESULT_FILE
        digest = file_digest(path) if run.ends_with_result and path.is_file() else ""
        if known and known.result:
            sent = (
                known.result == digest if run.ends_with_result else not _points(run.folder, known)
            )
            if sent:
                return
        mark = self._opened(run, known)
        if points := _points(run.folder, mark):
            mark = self._keep(run, replace(mark, sending=points[-1][0]))
            self.client.log(mark.id, points)
            mark = self._keep(run, replace(mark, step=mark.sending))
        if digest:
            result = read_result(path)
            ending: Ending = "done" if result.status == "done" else "failed"
            self.client.finish(mark.id, mark.step, _figures(result), ending)
            self._keep(run, replace(mark, result=digest))
            del self.active[run.folder]

    def close(self, ending: Ending) -> None:
        """End what has no result: its process is over, or was stopped."""
        for run in self.runs:
            if mark := self.active.pop(run.folder, None):
                over = ending == "done" and not run.ends_with_result
                self.client.finish(mark.id, mark.step, {}, "done" if over else "left")
                write_mark(run.folder, self.name, replace(mark, result="none" if over else ""))

    def _opened(self, run: TrackedRun, known: SentMark | None) -> SentMark:
        """Return the mark of the client's run, begun or taken up again if it is not open."""
        before = self.active.get(run.folder)
        if before and known and before.id == known.id:
            return before
        if before:
            self.client.finish(before.id, before.step, {}, "left")
        mark = SentMark(id=self.client.open(run, known.id if known else ""))
        if known and known.sending > known.step:
            # killed while sending: nobody else knows whether the points arrived
            reached = self.client.reached(mark.id)
            known = replace(known, step=known.sending if reached is None else reached)
        return self._keep(run, replace(known, id=mark.id, result="") if known else mark)

    def _keep(self, run: TrackedRun, mark: SentMark) -> SentMark:
        self.active[run.folder] = mark
        write_mark(run.folder, self.name, mark)
        return mark


def _done_before(run: TrackedRun) -> bool:
    """Return whether a result was there before the command, under the same protocol."""
    path = run.folder / RESULT_FILE
    return path.is_file() and read_result(path).protocol == run.config["protocol"]


def _points(folder: Path, mark: SentMark) -> list[Point]:
    """Return the points that a client lacks; a run that goes on writes some once more, alike."""
    found: list[Point] = []
    for entry in read_curve(folder):
        step = entry.pop("step")
        if step > max(mark.step, found[-1][0] if found else -1):
            found.append((step, {k: v for k, v in entry.items() if _finite(v)}))
    return found


def _figures(result: Result) -> Mapping[str, float]:
    """Return the metrics of a result, their intervals, and what they cost."""
    if result.status != "done":
        return {}
    found = {f"result/{name}": value for name, value in result.metrics.items()}
    found |= {f"result/{name}_interval": half for name, half in result.intervals.items()}
    cost = {"seconds": result.provenance.seconds, "memory_mb": result.provenance.peak_memory_mb}
    return found | {f"result/{name}": value for name, value in cost.items()}


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def follow() -> None:
    """Follow the runs that stdin names until it says that they ended, or closes."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as orders:
        asked = json.loads(orders.readline())
        runs = [TrackedRun(**{**run, "folder": Path(run["folder"])}) for run in asked["runs"]]
        follower = Follower(asked["client"], CLIENTS[asked["client"]](), runs)
        ended = False
        while not ended:
            follower.advance()
            ended = bool(select.select([orders], [], [], asked["poll"])[0])
        word = orders.readline().decode().strip()
    follower.advance()
    follower.close("done" if word == "done" else "left")


if __name__ == "__main__":
    follow()
