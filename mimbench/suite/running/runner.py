"""Run cells, each in a process of its own, so that one failure costs one cell."""

import logging
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mimbench.benchmarks.basis import number_in
from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import begin, finished, record_failure
from mimbench.benchmarks.run_config import LEFT_FILE, LOG_FILE, RESULT_FILE
from mimbench.results.record import Result, read_result
from mimbench.suite.running.launch import Slot, eval_command, start, stop
from mimbench.suite.running.screen import Screen, last_lines
from mimbench.system.errors import UserError
from mimbench.system.progress import clock
from mimbench.system.signals import left_early

logger = logging.getLogger(__name__)
Command = Callable[[Cell, Slot], list[str]]


@dataclass(frozen=True)
class FinishedCell:
    """How a cell ended in this run."""

    cell: Cell
    status: Literal["done", "skipped", "failed", "interrupted"]
    seconds: float | None = None
    """From the start of its process to its end; None where no process ran, or not under our eyes."""


class Monitor(Protocol):
    """Follows the cells of a run."""

    def begin(self, cell: Cell) -> float | None:
        """Return how many seconds the cell is expected to take, if that is known."""
        ...

    def end(self, cell: Cell, seconds: float) -> None:
        """Take note of what a finished cell took."""
        ...


@dataclass
class ActiveCell:
    """A cell at work."""

    cell: Cell
    slot: Slot
    process: subprocess.Popen[bytes]
    began: float

    @property
    def label(self) -> str:
        """Name of the cell."""
        return self.cell.label

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.cell.folder / LOG_FILE


def standard_command(cell: Cell, slot: Slot) -> list[str]:
    """Return the command line of a cell: one process for each GPU of its slot."""
    return eval_command(cell.folder, max(1, len(slot.gpus)))


def run_cells(
    cells: Sequence[Cell],
    slots: Sequence[Slot] = (Slot(),),
    *,
    fresh: bool = False,
    command: Command = standard_command,
    monitor: Monitor | None = None,
) -> list[FinishedCell]:
    """Run the cells that are not done; return how each ended, in order of ending.

    Args:
        cells: What to run, in this order where slots allow.
        slots: Shares of the machine; as many cells run side by side.
        fresh: Run done cells again, keeping their old folders aside.
        command: What to start for a cell.
        monitor: Called for each cell that begins and each that is done.
    """
    ended, waiting = settle(cells, fresh=fresh)
    running: list[ActiveCell] = []
    screen = Screen(len(waiting))
    try:
        while waiting or running:
            begun, refused = _fill(waiting, running, slots, command, fresh=fresh)
            ended += refused
            for job in begun:
                _announce(job.cell, monitor)
            time.sleep(0.05)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                ended.append(conclude(job, screen.next()))
                if monitor and ended[-1].status == "done":
                    monitor.end(job.cell, ended[-1].seconds or 0.0)
            screen.show(running)
    finally:
        for job in running:
            logger.warning("%s: stopping; run again to go on", job.cell.label)
            stop(job.process)
    return ended


def settle(cells: Iterable[Cell], *, fresh: bool = False) -> tuple[list[FinishedCell], list[Cell]]:
    """Return the cells that need no process (done, impossible) and those that do."""
    ended, waiting = [], []
    for cell in cells:
        done = None if fresh else finished(cell)
        if done:
            logger.info("%s: skipped, done before: %s", cell.label, figure(done))
            ended.append(FinishedCell(cell, "skipped"))
        elif cell.problem:
            logger.error("%s: not possible here: %s", cell.label, cell.problem)
            if number_in(cell.folder):
                logger.warning("%s: the number that it has from before stays", cell.label)
            else:
                record_failure(cell, cell.problem)
            ended.append(FinishedCell(cell, "failed"))
        else:
            waiting.append(cell)
    return ended, waiting


def _fill(
    waiting: list[Cell],
    running: list[ActiveCell],
    slots: Sequence[Slot],
    command: Command,
    *,
    fresh: bool,
) -> tuple[list[ActiveCell], list[FinishedCell]]:
    """Start what can start now; return what was started, and what could not be."""
    begun: list[ActiveCell] = []
    refused: list[FinishedCell] = []
    free = [slot for slot in slots if all(job.slot is not slot for job in running)]
    for slot in free:
        busy = [*waiting, *(job.cell for job in running)]
        cell = next((c for c in waiting if not _blocked(c, busy)), None)
        if cell is None:
            break
        waiting.remove(cell)
        if not claimed(cell, fresh=fresh):
            refused.append(FinishedCell(cell, "failed"))
            continue
        began = time.monotonic()
        process = start(command(cell, slot), cell.folder, slot)
        begun.append(ActiveCell(cell, slot, process, began))
        running.append(begun[-1])
    return begun, refused


def claimed(cell: Cell, *, fresh: bool) -> bool:
    """Return whether the cell's folder is ready for its run; False while another process works there."""
    try:
        begin(cell, fresh=fresh)
    except UserError as error:
        logger.error("%s: not started: %s", cell.label, error)
        return False
    return True


def _announce(cell: Cell, monitor: Monitor | None) -> None:
    expected = monitor.begin(cell) if monitor else None
    hint = f"expected to take {clock(expected)}, " if expected else ""
    logger.info("%s: started, %slog in %s", cell.label, hint, cell.folder / LOG_FILE)


def _blocked(cell: Cell, busy: Sequence[Cell]) -> bool:
    """A cell waits for the benchmarks it names in `after`, on the same checkpoint."""
    return any(
        other.run.benchmark in cell.after and other.candidate == cell.candidate
        for other in busy
        if other is not cell
    )


def conclude(job: ActiveCell, position: str) -> FinishedCell:
    """Read what a finished process left; without a result the cell failed."""
    code, seconds = job.process.wait(), time.monotonic() - job.began
    spent, path = clock(seconds), job.cell.folder / RESULT_FILE
    if code == 0 and path.is_file():
        logger.info("%s %s: %s in %s", position, job.cell.label, figure(read_result(path)), spent)
        return FinishedCell(job.cell, "done", seconds)
    if left_early(code) or (job.cell.folder / LEFT_FILE).exists():
        logger.warning(
            "%s %s: interrupted after %s; the same command goes on",
            position,
            job.cell.label,
            spent,
        )
        return FinishedCell(job.cell, "interrupted", seconds)
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
    return FinishedCell(job.cell, "failed")


def figure(result: Result) -> str:
    """Return the main figure as text."""
    return f"{result.main_metric} {result.metrics[result.main_metric]:.2f}"
