"""The kinds of files that are read, by name."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mimbench.system.errors import UserError
from mimbench.tables.foreign import efficient_probing, timm_results, visbench_records
from mimbench.tables.foreign.rows import ForeignRow, unique

Reader = Callable[[Path, str, str], Iterator[tuple[int, ForeignRow]]]


@dataclass(frozen=True)
class ForeignKind:
    """One kind of file."""

    title: str
    licence: str
    """Of the project that publishes such files."""
    read: Reader


KINDS: Mapping[str, ForeignKind] = {
    "ep": ForeignKind(
        "efficient-probing's results.csv", efficient_probing.LICENCE, efficient_probing.read
    ),
    "timm": ForeignKind("timm's results-*.csv", timm_results.LICENCE, timm_results.read),
    "visbench": ForeignKind(
        "VisBench's JSON lines", visbench_records.LICENCE, visbench_records.read
    ),
}


def parse_file(path: Path, kind: str, source: str, licence: str = "") -> list[ForeignRow]:
    """Return the rows of a file as its authors publish it.

    Args:
        path: The file.
        kind: One of `KINDS`.
        source: Where it is from, for people: an address with its commit or version.
        licence: Under which the numbers are; by default that of the project.
    """
    found = KINDS[kind]
    if not source.strip():
        raise UserError("--source is empty; say where the file is from, such as its address")
    rows = unique(
        (path, line, row) for line, row in found.read(path, source, licence or found.licence)
    )
    if not rows:
        raise UserError(f"{path} holds no number")
    return rows
