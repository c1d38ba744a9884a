"""What a cell will cost, from a short measurement on this machine: the cell itself, started and stopped."""

import logging
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimbench.cells import Cell, finished
from mimbench.config import to_mapping
from mimbench.files import write_json
from mimbench.launch import Slot, start, stop
from mimbench.orders import LOG_FILE, ORDER_FILE, RESULT_FILE, write_order
from mimbench.results import read_result
from mimbench.runner import Command, last_lines, standard_command

logger = logging.getLogger(__name__)
FORECAST = "forecast.json"
PAGE = 4096
CLOCK = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")
# our own progress lines; then detectron2's and mmengine's
PROGRESS = re.compile(
    r"(?P<label>\S.*?) (?P<done>\d+)/(?P<total>\d+) \d+% \S+ left (?P<left>[\ddhms]+)"
)
ETA = re.compile(r"eta: (?:(?P<days>\d+) days?, )?(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d)")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What one cell is expected to take; None: could not be told."""

    cell: str
    how: str
    seconds: float | None = None
    units: int | None = None
    """Steps or images of the stage that was seen."""
    memory_mb: float | None = None
    disk_mb: float | None = None
    actual_seconds: float | None = None


def forecast(
    cells: Sequence[Cell], *, patience: float = 40.0, command: Command = standard_command
) -> list[Forecast]:
    """Return a forecast for each cell; cells of one benchmark and one shape of model are measured once."""
    known: dict[tuple[str, str, str], Forecast] = {}
    for cell in cells:
        if done := finished(cell):
            seconds, memory = done.provenance.seconds, done.provenance.peak_memory_mb
            known[_kind(cell)] = Forecast(
                cell=cell.label,
                how="a finished run",
                seconds=seconds,
                memory_mb=memory,
                disk_mb=_size_mb(cell.folder),
            )
    found = []
    for cell in cells:
        if finished(cell):
            found.append(Forecast(cell=cell.label, how="done before", seconds=0.0))
        elif cell.problem:
            found.append(
                Forecast(cell=cell.label, how=f"not possible: {cell.problem.splitlines()[0]}")
            )
        else:
            if _kind(cell) not in known:
                known[_kind(cell)] = measure(cell, patience, command)
            found.append(replace(known[_kind(cell)], cell=cell.label))
    return found


def _kind(cell: Cell) -> tuple[str, str, str]:
    return cell.order.benchmark, cell.protocol, cell.contestant.weights.get("model", "")


def measure(cell: Cell, patience: float, command: Command = standard_command) -> Forecast:
    """Run the cell in a scratch folder until it tells its pace or ends, at most `patience` seconds."""
    folder = Path(tempfile.mkdtemp(prefix="mimbench-forecast-"))
    trial = replace(cell, folder=folder)
    write_order(folder / ORDER_FILE, cell.order)
    logger.info("%s: measuring for at most %.0f s", cell.label, patience)
    began = time.monotonic()
    process = start(command(trial, Slot()), folder, Slot())
    memory, pace = 0.0, None
    try:
        while process.poll() is None and time.monotonic() - began < patience:
            time.sleep(0.2)
            memory = max(memory, tree_memory_mb(process.pid))
            pace = read_pace(last_lines(folder / LOG_FILE, 5)) or pace
        return _conclusion(trial, process, time.monotonic() - began, memory, pace)
    finally:
        stop(process, patience=5.0)
        shutil.rmtree(folder, ignore_errors=True)


def _conclusion(
    trial: Cell, process: subprocess.Popen[bytes], spent: float, memory: float, pace: "Pace | None"
) -> Forecast:
    said = f"measured for {spent:.0f} s"
    result = trial.folder / RESULT_FILE
    disk = _size_mb(trial.folder)
    if process.poll() == 0 and result.is_file():
        seconds = read_result(result).provenance.seconds
        return Forecast(
            cell=trial.label, how="ran to its end", seconds=seconds, memory_mb=memory, disk_mb=disk
        )
    if process.poll() is not None:
        why = (last_lines(trial.folder / LOG_FILE, 1) or ["no output"])[0]
        return Forecast(cell=trial.label, how=f"the measurement failed: {why}")
    if pace is None:
        return Forecast(
            cell=trial.label, how=f"{said}, no pace told yet: try --patience", memory_mb=memory
        )
    return Forecast(
        cell=trial.label,
        how=f"{said}, stage {pace.label}",
        seconds=spent + pace.left,
        units=pace.total,
        memory_mb=memory,
        disk_mb=disk,
    )


@dataclass(frozen=True)
class Pace:
    """What a progress line says."""

    label: str
    total: int | None
    left: float


def read_pace(lines: Sequence[str]) -> Pace | None:
    """Return the pace in the last line that tells one."""
    for line in reversed(lines):
        if match := PROGRESS.search(line):
            seconds = clock_seconds(match["left"])
            if seconds is not None:
                return Pace(match["label"].split(" ", 1)[-1][-40:], int(match["total"]), seconds)
        if match := ETA.search(line):
            hours = int(match["days"] or 0) * 24 + int(match["h"])
            return Pace(
                "training", None, float(hours * 3600 + int(match["m"]) * 60 + int(match["s"]))
            )
    return None


def clock_seconds(text: str) -> float | None:
    """Return the seconds of 42s, 3m07s, 2h05m or 3d04h."""
    match = CLOCK.match(text)
    if not match or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


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


def keep(path: Path, found: Sequence[Forecast]) -> None:
    """Keep forecasts for a later comparison with what really happened."""
    write_json(path, to_mapping(list(found)))


def compare_with_actual(
    found: Sequence[Mapping[str, object]], cells: Sequence[Cell]
) -> list[dict[str, object]]:
    """Return the kept forecasts with the seconds that cells really took."""
    actual = {cell.label: done.provenance.seconds for cell in cells if (done := finished(cell))}
    return [
        {**entry, "actual_seconds": actual.get(str(entry["cell"]), entry.get("actual_seconds"))}
        for entry in found
    ]
