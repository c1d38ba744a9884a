"""Tables of others that ship with us: one ladder's rows each, as CSV with their source, and what they are for."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from mimbench.system.config import from_mapping, load_yaml
from mimbench.system.errors import UserError
from mimbench.tables.foreign.reading import read_lines
from mimbench.tables.foreign.rows import ForeignRow
from mimbench.tables.ladder.judge import Ladder, LadderRow

FOLDER = Path(__file__).parent / "public"
KEYS = ("benchmark", "metric", "dataset", "protocol", "seed")


@dataclass(frozen=True, kw_only=True)
class LadderEntry:
    """One ladder in a file; cells are spelled BENCHMARK/METRIC."""

    title: str
    target: str
    rungs: tuple[str, ...]
    top1: str


@dataclass(frozen=True, kw_only=True)
class PublicTable:
    """One public table."""

    title: str
    source: str
    licence: str
    rows: str
    """CSV beside the file: a line for each benchmark and seed, a column for each model."""
    families: Mapping[str, str]
    """Model -> family of its pretraining; every column has one."""
    ladders: tuple[LadderEntry, ...]


def public_tables() -> list[PublicTable]:
    """Return the tables that ship with us."""
    paths = sorted(FOLDER.glob("*.yaml"))
    return [from_mapping(PublicTable, load_yaml(path), path.name) for path in paths]


def read_table(table: PublicTable) -> tuple[list[LadderRow], dict[str, str]]:
    """Return a table's rows, seeds averaged, and cell -> the protocol that its numbers follow."""
    by_seed, protocols = read_seeds(table)
    rows = [
        LadderRow(
            model=model,
            family=table.families[model],
            values={cell: fmean(seeds.values()) for cell, seeds in cells.items()},
        )
        for model, cells in by_seed.items()
    ]
    return rows, protocols


def read_seeds(table: PublicTable) -> tuple[dict[str, dict[str, dict[int, float]]], dict[str, str]]:
    """Return model -> cell -> seed -> value, and cell -> protocol."""
    lines = [line for line in read_lines(FOLDER / table.rows) if not line.startswith("#")]
    records = csv.DictReader(lines, strict=True)
    models = [name for name in records.fieldnames or () if name not in KEYS]
    if set(models) != set(table.families):
        odd = ", ".join(sorted(set(models) ^ set(table.families)))
        raise UserError(f"{table.rows}: columns and families differ in {odd}")
    found: dict[str, dict[str, dict[int, float]]] = {model: {} for model in models}
    protocols: dict[str, str] = {}
    for record in records:
        cell = f"{record['benchmark']}/{record['metric']}"
        if protocols.setdefault(cell, record["protocol"]) != record["protocol"]:
            raise UserError(f"{table.rows}: {cell} stands under two protocols")
        for model in models:
            found[model].setdefault(cell, {})[int(record["seed"])] = float(record[model])
    return found, protocols


def ladders_of(table: PublicTable) -> list[Ladder]:
    """Return the ladders that a table is for."""
    return [
        Ladder(title=entry.title, target=entry.target, rungs=entry.rungs, top1=entry.top1)
        for entry in table.ladders
    ]


def imported(
    rows: Sequence[ForeignRow], protocols: Mapping[str, str], known: Collection[str]
) -> list[LadderRow]:
    """Return the models of imported rows that a public table does not hold, under its protocols alone.

    Args:
        rows: Numbers that `import` wrote.
        protocols: Cell -> protocol of the public table.
        known: Its models.
    """
    values: dict[str, dict[str, list[float]]] = {}
    families: dict[str, str] = {}
    for row in rows:
        cell = f"{row.benchmark}/{row.metric}"
        if row.model not in known and protocols.get(cell) == row.protocol:
            values.setdefault(row.model, {}).setdefault(cell, []).append(row.value)
            families[row.model] = row.family
    return [
        LadderRow(
            model=model,
            family=families[model],
            values={cell: fmean(numbers) for cell, numbers in cells.items()},
        )
        for model, cells in values.items()
    ]


def with_families(rows: Sequence[LadderRow], said: Mapping[str, str]) -> list[LadderRow]:
    """Return the rows with the families that the user says."""
    unknown = sorted(set(said) - {row.model for row in rows})
    if unknown:
        raise UserError(f"--family names '{unknown[0]}', which no row is called")
    return [replace(row, family=said.get(row.model, row.family)) for row in rows]
