"""The tables of papers as data: `papers/*.yaml` names rows, columns, protocols and what is unknown.

A published cell is a row of the reference file, found by method, model, epochs, protocol and metric:
a number stands in one place only. What is not found there stays empty. No torch is imported here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.system.config import from_mapping, load_yaml
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.source import ROOT

PAPERS = ROOT / "papers"
UNKNOWN_COST = "not found"


@dataclass(frozen=True, kw_only=True)
class PaperColumn:
    """One column: a benchmark's metric."""

    title: str
    benchmark: str
    metric: str
    also: tuple[str, ...] = ()
    """Further protocols under which this column's numbers were published; never subtracted."""
    cost: str = ""
    """Of one cell, as published or derived; empty: of the column before it on the same benchmark."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row: a published model, or the arm of an ablation."""

    label: str
    model: str
    method: str = ""
    """As the reference file calls it; empty: nothing of this row is published."""
    epochs: int | None = None
    pretrain: str = ""
    """The pretraining config that makes it, from the root of the repository; empty: none of ours does."""
    set: tuple[str, ...] = ()
    """What --set changes in that config."""

    @property
    def command(self) -> str:
        """Return the command that makes the row's checkpoint; '' if none of ours does."""
        if not self.pretrain:
            return ""
        changes = "".join(f" --set {item}" for item in self.set)
        return f"python -m pretrain {Path(self.pretrain).stem}{changes}"


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table of a paper."""

    title: str
    place: str
    """Where in the paper or its repository it stands."""
    columns: Mapping[str, PaperColumn]
    rows: Mapping[str, PaperRow]
    needs: tuple[str, ...] = ()
    """Benchmarks whose finished run the columns use."""
    unknown: tuple[str, ...] = ()
    """What the paper reports and nobody could be found to state."""
    notes: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    """Words of the sources that win where several state a cell; by default the paper's."""

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """Return the benchmarks that one row takes."""
        return tuple(dict.fromkeys([*self.needs, *(c.benchmark for c in self.columns.values())]))

    def cells(self) -> Iterator[tuple[str, str]]:
        """Yield (row id, column id) of every cell."""
        yield from ((row, column) for row in self.rows for column in self.columns)

    def known(self, manifest: Manifest) -> int:
        """Return how many cells have a published value."""
        return sum(
            published(self, row, column, manifest) is not None for row, column in self.cells()
        )


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and its tables."""

    name: str
    source: str
    tables: Mapping[str, PaperTable]
    first: tuple[str, ...] = ()
    """Words of the sources that win where several state a cell: the paper's own baselines."""


@dataclass(frozen=True, kw_only=True)
class PaperShelf:
    """All papers; a table is called paper.table."""

    papers: Mapping[str, Paper] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, PaperTable]:
        """Return id -> table."""
        return {
            f"{name}.{table}": found
            for name, paper in self.papers.items()
            for table, found in paper.tables.items()
        }

    def find(self, name: str) -> PaperTable:
        """Return a table by its id."""
        tables = self.tables
        if name not in tables:
            raise UserError(
                f"no table '{name}'{did_you_mean(name, tables)}; `python -m mimbench tables` lists them"
            )
        return tables[name]


def load_papers(manifest: Manifest, folder: Path = PAPERS) -> PaperShelf:
    """Read every paper in a folder strictly."""
    papers = {}
    for path in sorted(folder.glob("*.yaml")):
        paper = from_mapping(Paper, load_yaml(path), path.name)
        for name, table in paper.tables.items():
            _check(table, f"{path.name}.{name}", manifest)
        tables = {k: replace(t, first=t.first or paper.first) for k, t in paper.tables.items()}
        papers[path.stem] = replace(paper, tables=tables)
    if not papers:
        raise UserError(f"no papers in {folder}; expected files such as hpm.yaml")
    return PaperShelf(papers=papers)


def _check(table: PaperTable, where: str, manifest: Manifest) -> None:
    """Refuse names that point nowhere."""
    for name in table.benchmarks:
        if name not in manifest.benchmarks:
            raise UserError(
                f"{where}: no benchmark '{name}'" + did_you_mean(name, manifest.benchmarks)
            )
        manifest.change(name, "paper")
    for key, column in table.columns.items():
        for protocol in column.also:
            if protocol not in manifest.protocols:
                raise UserError(
                    f"{where}.{key}: no protocol '{protocol}'"
                    + did_you_mean(protocol, manifest.protocols)
                )
    methods = {reference.method for reference in manifest.references}
    for key, row in table.rows.items():
        if row.pretrain and not (ROOT / row.pretrain).is_file():
            raise UserError(f"{where}.{key}: no pretraining config {row.pretrain}")
        if row.set and not row.pretrain:
            raise UserError(f"{where}.{key}: `set` changes a pretraining config, and none is named")
        if row.method and row.method not in methods and not table.unknown:
            raise UserError(
                f"{where}.{key}: nothing is published of '{row.method}'"
                + did_you_mean(row.method, methods)
                + "; say so in `unknown`"
            )


def published(table: PaperTable, row: str, column: str, manifest: Manifest) -> Reference | None:
    """Return the published value of a cell, of the column's own protocol where there is one."""
    entry, wanted = table.rows[row], table.columns[column]
    if not entry.method:
        return None
    for protocol in (wanted.benchmark, *wanted.also):
        key = (protocol, wanted.metric, entry.method, entry.model)
        found = [
            r
            for r in manifest.references
            if (r.protocol, r.metric, r.method, r.model) == key and entry.epochs in (None, r.epochs)
        ]
        if found:
            return min(found, key=lambda r: not any(word in r.source for word in table.first))
    return None


def cost_of(table: PaperTable, benchmark: str) -> str:
    """Return what one cell of a benchmark takes, as it was published; 'not found' if nobody says."""
    found = [c.cost for c in table.columns.values() if c.benchmark == benchmark and c.cost]
    return found[0] if found else UNKNOWN_COST
