"""What a cell will cost, from a short measurement on this machine: the cell itself, started and stopped."""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mimbench.benchmarks.cells import Cell
from mimbench.benchmarks.lifecycle import finished
from mimbench.benchmarks.run_config import (
    CONFIG_FILE,
    LOG_FILE,
    RESULT_FILE,
    RunConfig,
    write_run_config,
)
from mimbench.suite.costs.stage_progress import StageProgress, read_stage
from mimbench.suite.running.launch import Slot, start, stop
from mimbench.suite.running.runner import Command, standard_command
from mimbench.suite.running.screen import last_lines
from mimbench.system.progress import INTERVAL

logger = logging.getLogger(__name__)
PAGE = 4096
LINES = 400
"""Of a trial's log that are read for its progress."""
Kind = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one cell is expected to take, from the start of its process to its end; None: unknown."""

    cell: str
    how: str
    seconds: float | None = None
    units: int | None = None
    """Steps or images of the stage that was seen."""
    memory_mb: float | None = None
    disk_mb: float | None = None
    actual_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial showed until it ended or was stopped."""

    seconds: float
    code: int | None
    """Exit code; None: stopped at work."""
    memory_mb: float
    disk_mb: float
    stage: StageProgress | None
    last_line: str

    @property
    def whole(self) -> float | None:
        """Seconds to the end of the stage that was seen; None if neither end nor speed was."""
        if self.code is None:
            return self.seconds + self.stage.left if self.stage else None
        return self.seconds if self.code == 0 else None


def forecast(
    cells: Sequence[Cell],
    *,
    patience: float = 40.0,
    command: Command = standard_command,
    took: Mapping[str, float] | None = None,
    slot: Slot | None = None,
) -> list[Forecast]:
    """Return a forecast for each cell; cells of one benchmark and one shape of model are measured once.

    Args:
        cells: What is to be run.
        patience: Seconds for one measurement.
        command: What to start for a cell.
        took: Label -> seconds that finished cells really took.
        slot: The share of the machine that a cell will have.
    """
    known = lessons(cells, took or {})
    stages: dict[tuple[str, str], str] = {}
    found = []
    for cell in cells:
        if finished(cell):
            found.append(Forecast(cell=cell.label, how="done before", seconds=0.0))
        elif cell.problem:
            found.append(
                Forecast(cell=cell.label, how=f"not possible: {cell.problem.splitlines()[0]}")
            )
        else:
            if kind_of(cell) not in known:
                known[kind_of(cell)] = measure(
                    cell, patience, command, stages=stages, slot=slot or Slot()
                )
            found.append(replace(known[kind_of(cell)], cell=cell.label))
    return found


def kind_of(cell: Cell) -> Kind:
    """Return what cells of like cost share: benchmark, protocol, shape of the model."""
    return cell.run.benchmark, cell.protocol, cell.candidate.weights.get("model", "")


def lessons(cells: Sequence[Cell], took: Mapping[str, float]) -> dict[Kind, Forecast]:
    """Return what finished cells teach about others of their kind."""
    known = {}
    for cell in cells:
        if done := finished(cell):
            known[kind_of(cell)] = Forecast(
                cell=cell.label,
                how="a finished run",
                seconds=took.get(cell.label, done.provenance.seconds),
                memory_mb=done.provenance.peak_memory_mb,
                disk_mb=_size_mb(cell.folder),
            )
    return known


def measure(
    cell: Cell,
    patience: float,
    command: Command = standard_command,
    *,
    stages: dict[tuple[str, str], str],
    slot: Slot,
) -> Forecast:
    """Run the cell in a scratch folder until it ends or its speed is known, at most `patience` seconds.

    A cell that was stopped in its training has not shown what comes after; where its task offers a
    rehearsal (the recipe with next to no training), that is run too.

    Args:
        cell: What to measure.
        patience: Seconds for each of the two.
        command: What to start.
        stages: (checkpoint, benchmark) -> stage that a trial was stopped in; filled here, and read
            to see what a cell will find ready because the cell before it in line has made it.
        slot: The share of the machine.
    """
    logger.info("%s: measuring for at most %.0f s", cell.label, patience)
    seen = observe(cell, cell.run, patience, command, slot)
    who = cell.candidate.folder
    if seen.stage and seen.code is None:
        stages[who, cell.run.benchmark] = seen.stage.label
    expected = Forecast(
        cell=cell.label,
        how=f"measured for {seen.seconds:.0f} s",
        memory_mb=seen.memory_mb,
        disk_mb=seen.disk_mb,
    )
    if seen.code == 0:
        return replace(expected, how="ran to its end", seconds=seen.seconds)
    if seen.code is not None:
        return Forecast(cell=cell.label, how=f"the measurement failed: {seen.last_line}")
    if seen.stage is None or seen.whole is None:
        return replace(
            expected,
            how=f"{expected.how}, its speed is not known yet: try --patience",
            disk_mb=None,
        )
    made = {stages.get((who, name)) for name in cell.after}
    whole = seen.seconds if seen.stage.label in made else seen.whole
    after = 0.0
    if cell.rehearsal:
        # what a rehearsal takes beyond the way to its training is what follows a training
        short = replace(cell.run, config=cell.rehearsal)
        rehearsed = observe(cell, short, patience, command, slot)
        after = max(0.0, (rehearsed.whole or 0.0) - (seen.seconds - seen.stage.spent))
        expected = replace(expected, memory_mb=max(seen.memory_mb, rehearsed.memory_mb))
    return replace(
        expected,
        how=f"{expected.how}, stage {seen.stage.label}"
        + (f", then {after:.0f} s" if after else ""),
        seconds=whole + after,
        units=seen.stage.total,
    )


def observe(cell: Cell, run: RunConfig, patience: float, command: Command, slot: Slot) -> Trial:
    """Start a run in a scratch folder and follow it until it ends or patience does."""
    with _scratch() as folder:
        beside = cell.folder.parent.absolute()
        write_run_config(folder / CONFIG_FILE, replace(run, beside=beside))
        began = time.monotonic()
        slot = replace(slot, environment={**slot.environment, INTERVAL: "1"})
        process = start(command(replace(cell, folder=folder), slot), folder, slot)
        memory = 0.0
        try:
            while process.poll() is None and time.monotonic() - began < patience:
                time.sleep(0.2)
                memory = max(memory, tree_memory_mb(process.pid))
            code, spent = process.poll(), time.monotonic() - began
        finally:
            stop(process, patience=5.0)
        lines = last_lines(folder / LOG_FILE, LINES)
        failed = code == 0 and not (folder / RESULT_FILE).is_file()
        return Trial(
            seconds=spent,
            code=1 if failed else code,
            memory_mb=memory,
            disk_mb=_size_mb(folder),
            stage=read_stage(lines),
            last_line=lines[-1] if lines else "no output",
        )


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mimbench-forecast-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tree_memory_mb(root: int) -> float:
    """Return the resident memory of a process and its children (Linux; 0 elsewhere)."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            pages = int(path.with_name("statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        parents[int(path.parent.name)], sizes[int(path.parent.name)] = int(fields[1]), pages
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(sizes.get(pid, 0) for pid in family) * PAGE / 2**20


def _size_mb(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20
