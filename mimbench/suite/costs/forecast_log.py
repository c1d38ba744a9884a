"""What cells were expected to take and what they took, kept in forecast.json of an output folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mimbench.benchmarks.cells import Cell
from mimbench.suite.costs.forecast import Forecast, Kind, kind_of, lessons
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.files import write_json
from mimbench.system.progress import clock

logger = logging.getLogger(__name__)
FORECAST = "forecast.json"
IDLE = ("done before", "not possible")
"""How forecasts begin that expect no work."""


class ForecastLog:
    """Expectations and facts of one output folder.

    An expectation comes from `plan`, or from an earlier cell of the same benchmark and shape of
    model: a run without a plan learns from its first checkpoint what the next ones will take.

    Args:
        path: Where it is kept.
        cells: The run's cells; others that the file tells of are left as they are.
    """

    def __init__(self, path: Path, cells: Sequence[Cell] = ()) -> None:
        self.path, self.cells = path, {cell.label: cell for cell in cells}
        self.entries = {f.cell: f for f in _read(path)}
        self.known: dict[Kind, Forecast] = lessons(cells, self.took())

    def took(self) -> dict[str, float]:
        """Return label -> seconds that finished cells really took."""
        return {k: f.actual_seconds for k, f in self.entries.items() if f.actual_seconds}

    def keep(self, found: Sequence[Forecast]) -> None:
        """Keep a plan; what done cells took stays known."""
        took = self.took()
        for f in found:
            done = f.how.startswith(IDLE)
            if not done or f.cell not in self.entries:
                self.entries[f.cell] = replace(f, actual_seconds=took.get(f.cell))
        self._write()

    def begin(self, cell: Cell) -> float | None:
        """Return what a cell that starts now is expected to take, if anything tells."""
        kept = self.entries.get(cell.label)
        planned = kept is not None and kept.seconds and not kept.how.startswith(IDLE)
        expected = kept if planned else self.known.get(kind_of(cell))
        expected = expected or Forecast(cell=cell.label, how="not measured before the run")
        self.entries[cell.label] = replace(expected, cell=cell.label, actual_seconds=None)
        return expected.seconds

    def end(self, cell: Cell, seconds: float) -> None:
        """Record what a finished cell took."""
        self.entries[cell.label] = replace(
            self.entries[cell.label], actual_seconds=round(seconds, 1)
        )
        self.known |= lessons([cell], self.took())
        self._write()

    def summary(self, labels: Sequence[str]) -> str:
        """Return one line on how good the expectations of these cells were; '' without any."""
        both = [
            (f.seconds, f.actual_seconds)
            for f in map(self.entries.get, labels)
            if f and f.seconds and f.actual_seconds
        ]
        if not both:
            return ""
        expected, real = (sum(column) for column in zip(*both, strict=True))
        return (
            f"{len(both)} cells took {clock(real)}, expected {clock(expected)} "
            f"({100 * (expected / real - 1):+.0f} %)"
        )

    def _write(self) -> None:
        write_json(self.path, to_mapping(list(self.entries.values())))


def _read(path: Path) -> list[Forecast]:
    if not path.is_file():
        return []
    kept: list[Mapping[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return [from_mapping(Forecast, entry, str(path)) for entry in kept]


def plan_lines(cells: Sequence[Cell], found: Sequence[Forecast], slots: int = 1) -> list[str]:
    """Return a line for each cell, and the total on `slots` shares of the machine."""
    lines = []
    for cell, f in zip(cells, found, strict=True):
        parts = [clock(f.seconds) if f.seconds is not None else "?"]
        parts += [f"{f.units:,} steps or images"] if f.units else []
        parts += [f"{f.memory_mb:.0f} MB memory"] if f.memory_mb else []
        parts += [f"{f.disk_mb:.1f} MB disk"] if f.disk_mb else []
        lines.append(f"{cell.label}: {', '.join(parts)} ({f.how})")
    expected = [f.seconds for f in found if f.seconds is not None]
    unknown = len(found) - len(expected)
    side = f", {slots} cells side by side" if slots > 1 else ""
    total = f"total: {clock(makespan(expected, slots))}{side}"
    return [*lines, total + (f"; not known of {unknown} of {len(found)} cells" if unknown else "")]


def makespan(seconds: Sequence[float], slots: int) -> float:
    """Return when the last cell ends if each starts, in this order, in the first free slot."""
    free = [0.0] * max(1, slots)
    for spent in seconds:
        free[free.index(min(free))] += spent
    return max(free)
