"""What a run will cost, said before it is spent."""

from collections.abc import Sequence
from pathlib import Path

from mimbench.benchmarks.cells import Cell
from mimbench.suite.costs.footprint import (
    features_mb,
    free_disk_mb,
    free_memory_mb,
    gigabytes,
)
from mimbench.suite.costs.forecast import forecast
from mimbench.suite.costs.forecast_log import FORECAST, ForecastLog, plan_lines
from mimbench.suite.running.launch import Slot

PATIENCE = 40.0
"""Seconds for one measurement."""


def longest_first(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells checkpoint by checkpoint, each from its heavy tasks to its light ones.

    Side by side, short cells fill the gaps that long ones leave; and what the first checkpoint took
    is known by the time the second one starts.
    """
    place = {folder: i for i, folder in enumerate(dict.fromkeys(c.candidate.folder for c in cells))}
    return sorted(cells, key=lambda c: (place[c.candidate.folder], -c.effort))


def plan_text(
    cells: Sequence[Cell],
    out: Path,
    *,
    patience: float = PATIENCE,
    slots: Sequence[Slot] = (Slot(),),
    device: str = "auto",
) -> str:
    """Return a line for each cell, the total and the room there is; keep the forecasts in `out`."""
    forecasts = ForecastLog(out / FORECAST, cells)
    found = forecast(cells, patience=patience, took=forecasts.took(), slot=slots[0])
    forecasts.keep(found)
    needs = [cell.footprint for cell in cells]
    disk = sum(need.disk for need in needs) + features_mb(zip(cells, needs, strict=True))
    seen = [f.memory_mb for f in found if f.memory_mb]
    memory = max([*seen, *(need.memory for need in needs)], default=0.0)
    return "\n".join(
        [
            *plan_lines(cells, found, len(slots)),
            f"disk: at least {gigabytes(disk)} with states and features, "
            f"{gigabytes(free_disk_mb(out))} free under {out}",
            f"memory: {gigabytes(memory)} for the largest cell, "
            f"{gigabytes(free_memory_mb(device))} free",
            "",
        ]
    )
