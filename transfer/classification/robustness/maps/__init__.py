"""Published class maps, as tables with their source in the first line."""

import csv
from collections.abc import Iterator
from pathlib import Path

from mimbench.system.errors import UserError

Groups = tuple[tuple[int, ...], ...]
HERE = Path(__file__).parent


def rows_of(table: Path | str) -> Iterator[dict[str, str]]:
    """Yield the rows of a table: one of ours by its name, or a file; lines with # are remarks."""
    path = HERE / f"{table}.csv" if isinstance(table, str) else table
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the class map {path}: {error.strerror or error}") from error
    yield from csv.DictReader(line for line in lines if not line.startswith("#"))


def read_map(table: Path | str, name: str, indices: str) -> dict[str, tuple[int, ...]]:
    """Return name -> class indices from two columns of a table."""
    try:
        return {row[name]: tuple(map(int, row[indices].split())) for row in rows_of(table)}
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"{table}: expected columns {name} and {indices}, the latter whole numbers ({error})"
        ) from error


def in9_classes(table: Path | str = "in_to_in9") -> tuple[tuple[str, ...], Groups]:
    """Return the names of ImageNet-9's classes, and the ImageNet classes of each."""
    names: dict[int, str] = {}
    groups: dict[int, list[int]] = {}
    for row in rows_of(table):
        label = int(row["in9_index"])
        names[label] = row["in9_name"]
        groups.setdefault(label, []).append(int(row["imagenet_index"]))
    order = sorted(names)
    return tuple(names[i] for i in order), tuple(tuple(groups[i]) for i in order)


def alexnet_errors() -> dict[str, tuple[float, ...]]:
    """Return AlexNet's top-1 error of each corruption at severities 1 to 5, extra ones included."""
    return {
        row["corruption"]: tuple(float(row[f"s{s}"]) for s in range(1, 6))
        for row in rows_of("imagenet_c_alexnet")
    }
