"""Imported rows: what one number is, and the file that keeps them; never a measured cell.

The file is CSV with one number a line, so that a person can read it and a diff can show what changed.
"""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from mimbench.system.errors import UserError, printable
from mimbench.system.files import write_text
from mimbench.tables.foreign.reading import Line, read_csv

SEEDS = range(2**63)
TRUTH = {"yes": True, "no": False}
SUFFIX = ".csv"


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """One number of somebody else's."""

    model: str
    family: str = ""
    """What kind of pretraining it is: the source's own word, else the beginning of the model's name."""
    setting: str = ""
    """What tells two numbers of one model apart: weights, resolution, crop."""
    benchmark: str
    """The source's own name."""
    dataset: str
    metric: str
    value: float
    """Shares are percent, as everywhere in our tables; errors keep their unit."""
    lower_is_better: bool = False
    seed: int | None = None
    protocol: str
    """What the source says that it did; reference.yaml knows which of ours that is, if any (`also`)."""
    source: str
    licence: str

    @property
    def cell(self) -> tuple[str, ...]:
        """Return what no two numbers may share, except from run to run with other seeds."""
        return (self.model, self.setting, self.benchmark, self.dataset, self.metric, self.protocol)


COLUMNS = tuple(f.name for f in fields(ForeignRow))


def write_rows(path: Path, rows: Iterable[ForeignRow]) -> None:
    """Write rows as CSV, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_shown(value) for value in astuple(row)])
    write_text(path, text.getvalue())


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value)
    return "" if value is None else str(value)


def read_rows(path: Path) -> list[ForeignRow]:
    """Return the rows of a file that `import` wrote, or of all such files in a folder."""
    if path.is_dir():
        paths = sorted(path.glob(f"*{SUFFIX}"))
        if not paths:
            raise UserError(f"{path} holds no imported rows; make some: mimbench import FILE")
    else:
        paths = [path]
    return unique((p, line, row) for p in paths for line, row in _read(p))


def _read(path: Path) -> Iterator[tuple[int, ForeignRow]]:
    for record in read_csv(path, needed=COLUMNS, exact=True):
        truth = record.text("lower_is_better")
        if truth not in TRUTH:
            raise record.error(f"lower_is_better is '{truth}', expected yes or no")
        yield (
            record.line,
            ForeignRow(
                model=record.text("model"),
                family=record.text("family", empty=True),
                setting=record.text("setting", empty=True),
                benchmark=record.text("benchmark"),
                dataset=record.text("dataset"),
                metric=record.text("metric"),
                value=record.number("value", -math.inf, math.inf),
                lower_is_better=TRUTH[truth],
                seed=_seed(record),
                protocol=record.text("protocol"),
                source=record.text("source"),
                licence=record.text("licence"),
            ),
        )


def _seed(record: Line) -> int | None:
    return record.whole("seed", 0, SEEDS[-1]) if record.text("seed", empty=True) else None


def unique(rows: Iterable[tuple[Path, int, ForeignRow]]) -> list[ForeignRow]:
    """Return rows once each; two values for one cell are an error that names both places.

    Args:
        rows: File, line and row.
    """
    known: dict[tuple[object, ...], tuple[Path, int, ForeignRow]] = {}
    for path, line, row in rows:
        before, where, other = known.setdefault((*row.cell, row.seed), (path, line, row))
        same_place = (before, where) == (path, line)
        if same_place or (other.value == row.value and before != path):
            continue
        first = f"line {where}" if before == path else f"{before}, line {where}"
        raise UserError(
            f"{path}, line {line}: {printable(row.model, 80)} has a second "
            f"{printable(row.metric, 40)} in {printable(row.benchmark, 40)} ({row.value:g}; {first}: "
            f"{other.value:g}); keep one of them"
        )
    return [row for _, _, row in known.values()]


def protocols(rows: Sequence[ForeignRow]) -> list[str]:
    """Return the protocols that occur, in their order."""
    return list(dict.fromkeys(row.protocol for row in rows))
