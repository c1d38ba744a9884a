"""Run cells, each in a process of its own, so that one failure costs one cell."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mimbench.cells import Cell, finished, set_aside
from mimbench.launch import Slot, eval_command, start, stop
from mimbench.orders import LOG_FILE, ORDER_FILE, RESULT_FILE, write_order
from mimbench.progress import LIVE_SECONDS, clock
from mimbench.results import Result, provenance, read_result, write_result

logger = logging.getLogger(__name__)
Command = Callable[[Cell, Slot], list[str]]

SHOWN_LINES = 25
PLAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Ended:
    """How a cell ended in this run."""

    cell: Cell
    status: Literal["done", "skipped", "failed"]


@dataclass
class Running:
    """A cell at work."""

    cell: Cell
    slot: Slot
    process: subprocess.Popen[bytes]
    began: float


def standard_command(cell: Cell, slot: Slot) -> list[str]:
    """Return the command line of a cell: one process for each GPU of its slot."""
    return eval_command(cell.folder, max(1, len(slot.gpus)))


def run_cells(
    cells: Sequence[Cell],
    slots: Sequence[Slot] = (Slot(),),
    *,
    fresh: bool = False,
    command: Command = standard_command,
) -> list[Ended]:
    """Run the cells that are not done; return how each ended, in order of ending.

    Args:
        cells: What to run, in this order where slots allow.
        slots: Shares of the machine; as many cells run side by side.
        fresh: Run done cells again, keeping their old folders aside.
        command: What to start for a cell.
    """
    ended, waiting = settle(cells, fresh=fresh)
    running: list[Running] = []
    screen = Screen(len(waiting))
    try:
        while waiting or running:
            _fill(waiting, running, slots, command, fresh=fresh)
            time.sleep(0.05)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                ended.append(conclude(job, screen.next()))
            screen.show(running)
    finally:
        for job in running:
            logger.warning("%s: stopping; run again to go on", job.cell.label)
            stop(job.process)
    return ended


def settle(cells: Iterable[Cell], *, fresh: bool = False) -> tuple[list[Ended], list[Cell]]:
    """Return the cells that need no process (done, impossible) and those that do."""
    ended, waiting = [], []
    for cell in cells:
        done = None if fresh else finished(cell)
        if done:
            logger.info("%s: skipped, done before: %s", cell.label, figure(done))
            ended.append(Ended(cell, "skipped"))
        elif cell.problem:
            logger.error("%s: not possible here: %s", cell.label, cell.problem)
            record_failure(cell, cell.problem)
            ended.append(Ended(cell, "failed"))
        else:
            waiting.append(cell)
    return ended, waiting


def _fill(
    waiting: list[Cell],
    running: list[Running],
    slots: Sequence[Slot],
    command: Command,
    *,
    fresh: bool,
) -> None:
    free = [slot for slot in slots if all(job.slot is not slot for job in running)]
    for slot in free:
        busy = [*waiting, *(job.cell for job in running)]
        cell = next((c for c in waiting if not _blocked(c, busy)), None)
        if cell is None:
            return
        waiting.remove(cell)
        set_aside(cell, fresh=fresh)
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / RESULT_FILE).unlink(missing_ok=True)
        write_order(cell.folder / ORDER_FILE, cell.order)
        logger.info("%s: started, log in %s", cell.label, cell.folder / LOG_FILE)
        process = start(command(cell, slot), cell.folder, slot)
        running.append(Running(cell, slot, process, time.monotonic()))


def _blocked(cell: Cell, busy: Sequence[Cell]) -> bool:
    """A cell waits for the benchmarks it names in `after`, on the same checkpoint."""
    return any(
        other.order.benchmark in cell.after and other.contestant == cell.contestant
        for other in busy
        if other is not cell
    )


def conclude(job: Running, position: str) -> Ended:
    """Read what a finished process left; without a result the cell failed."""
    code, spent = job.process.wait(), clock(time.monotonic() - job.began)
    path = job.cell.folder / RESULT_FILE
    if code == 0 and path.is_file():
        logger.info("%s %s: %s in %s", position, job.cell.label, figure(read_result(path)), spent)
        return Ended(job.cell, "done")
    tail = last_lines(job.cell.folder / LOG_FILE)
    shown = "\n".join(f"    {line}" for line in tail)
    log = job.cell.folder / LOG_FILE
    logger.error(
        "%s %s: FAILED with exit code %d after %s; end of %s:\n%s",
        position,
        job.cell.label,
        code,
        spent,
        log,
        shown,
    )
    record_failure(job.cell, tail[-1] if tail else f"exit code {code}")
    return Ended(job.cell, "failed")


def record_failure(cell: Cell, error: str) -> None:
    """Leave a result that says the cell failed, so that the table can say so too."""
    result = Result(
        benchmark=cell.order.benchmark,
        task=cell.order.task,
        version=cell.version,
        main_metric=cell.main_metric,
        profile=cell.order.profile,
        protocol=cell.protocol,
        metrics={},
        config={},
        weights=cell.contestant.weights,
        status="failed",
        error=error,
        provenance=provenance(device=torch.device("cpu"), seed=0, seconds=0.0, peak_memory_mb=0.0),
    )
    write_result(cell.folder / RESULT_FILE, result)


def figure(result: Result) -> str:
    """Return the main figure as text."""
    return f"{result.main_metric} {result.metrics[result.main_metric]:.2f}"


def last_lines(path: Path, count: int = SHOWN_LINES) -> list[str]:
    """Return the last lines of a log that are not empty."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        text = file.read().decode("utf-8", errors="replace")
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()][
        -count:
    ]


class Screen:
    """The runner's own progress: the latest line of each running cell's log, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.width = total, 0, 0
        self.live = sys.stderr.isatty()
        self.shown = time.monotonic()

    def next(self) -> str:
        """Count one cell as ended; return '[3/12]'."""
        self.done += 1
        self._clear()
        return f"[{self.done}/{self.total}]"

    def show(self, running: Sequence[Running]) -> None:
        """Show what runs, when it is due."""
        now = time.monotonic()
        if not running or now - self.shown < (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            return
        self.shown = now
        lines = [self._line(job, now) for job in running]
        if self.live:
            text = lines[int(now / 2) % len(lines)][:160]
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)
        else:
            for line in lines:
                logger.info("%s", line)

    def _line(self, job: Running, now: float) -> str:
        latest = (last_lines(job.cell.folder / LOG_FILE, 1) or ["starting"])[0]
        place = f"[{self.done + 1}/{self.total}]"
        return f"{place} {job.cell.label} {clock(now - job.began)} | {latest}"

    def _clear(self) -> None:
        if self.live and self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")
            self.width = 0
