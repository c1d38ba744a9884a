"""What an output folder holds, gathered once for all parts of the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest
from mimbench.results.record import Result, Run
from mimbench.suite.report.colours import RowLook
from mimbench.system.errors import UserError
from mimbench.tables.columns import is_own, own_title
from mimbench.tables.rows import Table
from mimbench.tables.table import TWIN, make_table, read_results_with_folders


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Results, their table, and how its rows look."""

    out: Path
    manifest: Manifest
    table: Table
    runs: Sequence[Run]
    """Checkpoints before random twins, benchmarks in the manifest's order."""
    looks: Mapping[tuple[str, str], RowLook]
    """Name and digest -> how the row looks; in the table's order."""

    @property
    def done(self) -> list[Run]:
        """Return the runs that have a number."""
        return [(p, r) for p, r in self.runs if r.status == "done"]

    def look(self, result: Result) -> RowLook:
        """Return how a result's row looks."""
        return self.looks[result.weights["name"], result.weights["digest"]]

    def title(self, result: Result) -> str:
        """Return what the benchmark is called."""
        known = self.manifest.benchmarks.get(result.benchmark)
        title = known.title if known else result.benchmark
        return own_title(title, result) if is_own(result) else title

    def benchmarks(self) -> Iterator[tuple[str, list[tuple[RowLook, Path, Result]]]]:
        """Yield each benchmark's title with its finished runs, each data set of the user's own apart."""
        whats = [_what(r) for _, r in self.done]
        for what in dict.fromkeys(whats):
            mine = [run for run, its in zip(self.done, whats, strict=True) if its == what]
            yield self.title(mine[0][1]), [(self.look(r), p, r) for p, r in mine]

    def first_seeds(self) -> Iterator[tuple[str, list[tuple[RowLook, Path, Result]]]]:
        """Yield each benchmark's title with one finished run of each row."""
        for title, runs in self.benchmarks():
            first: dict[RowLook, tuple[RowLook, Path, Result]] = {}
            for look, path, result in sorted(runs, key=lambda run: run[2].provenance.seed):
                first.setdefault(look, (look, path, result))
            yield title, sorted(first.values(), key=lambda run: run[0].index)


def _what(result: Result) -> tuple[str, str]:
    return result.benchmark, str(result.config["dataset"]) if is_own(result) else ""


def gather(out: Path, manifest: Manifest, choice: Mapping[str, str] | None = None) -> Gathered:
    """Read an output folder.

    Args:
        out: What `run` wrote.
        manifest: Titles and published rows.
        choice: Row name -> published row to compare with.
    """
    runs = read_results_with_folders(out)
    if not runs:
        raise UserError(f"no results in {out}; name the folder that a run wrote (--out)")
    table = make_table([r for _, r in runs], manifest, choice=choice)
    rows = [row for row in table.rows if row.kind == "measured"]
    keys = list(dict.fromkeys((r.weights["name"], r.weights["digest"]) for _, r in runs))
    # as the table sorts its rows
    keys.sort(key=lambda key: key[0].startswith(TWIN))
    looks = {
        key: RowLook(row.label, i, row.twin, row.model)
        for i, (key, row) in enumerate(zip(keys, rows, strict=True))
    }
    place = {name: i for i, name in enumerate(manifest.benchmarks)}
    runs.sort(key=lambda x: (x[1].weights["name"].startswith(TWIN), place.get(x[1].benchmark, 0)))
    return Gathered(out=out, manifest=manifest, table=table, runs=runs, looks=looks)
