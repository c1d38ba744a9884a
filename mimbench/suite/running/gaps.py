"""Recipe gaps of finished cells, each in a process of its own, one GPU each."""

import logging
import subprocess
import time
from collections import deque
from collections.abc import Sequence

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.nearby import in_words
from mimbench.benchmarks.run_config import LOG_FILE
from mimbench.suite.running.launch import Slot, eval_command, gpu_slot, start, stop

logger = logging.getLogger(__name__)


def measure_gaps(cells: Sequence[Cell], slots: Sequence[Slot]) -> list[Cell]:
    """Measure the gaps that are lacking; return the cells whose gap could not be measured.

    A cell has its number already: a gap that fails costs it nothing.
    """
    waiting = deque(cell for cell in cells if lacking(cell))
    if waiting:
        logger.info("recipe gap: %d to measure", len(waiting))
    each = [gpu_slot([gpu]) for slot in slots for gpu in slot.gpus] or list(slots)
    running: list[tuple[Cell, Slot, subprocess.Popen[bytes]]] = []
    failed: list[Cell] = []
    try:
        while waiting or running:
            for slot in [s for s in each if all(used is not s for _, used, _ in running)]:
                if waiting:
                    cell = waiting.popleft()
                    command = [*eval_command(cell.folder), "--gap"]
                    running.append((cell, slot, start(command, cell.folder, slot)))
            time.sleep(0.05)
            for job in [job for job in running if job[2].poll() is not None]:
                running.remove(job)
                failed += [] if _report(job[0]) else [job[0]]
    finally:
        for cell, _, process in running:
            logger.warning("recipe gap of %s: stopping; run again to go on", cell.label)
            stop(process)
    return failed


def lacking(cell: Cell) -> bool:
    """Return whether the cell has a number, and its gap was not measured to the end."""
    result = finished(cell) if cell.nearby else None
    return result is not None and not (result.gap and result.gap.complete)


def _report(cell: Cell) -> bool:
    """Say how a gap ended; return whether it is there."""
    result = finished(cell)
    if result is not None and result.gap and result.gap.complete:
        logger.info("%s: %s", cell.label, in_words(result.gap))
        return True
    logger.warning(
        "%s: the recipe gap was not measured to the end; see %s", cell.label, cell.folder / LOG_FILE
    )
    return False
