"""How the rows of a column stand to its best one: paired over the same test images, corrected for all at once."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mimbench.benchmarks.manifest import Manifest
from mimbench.results.record import Result, Run
from mimbench.scores.confidence import LEVEL
from mimbench.scores.recipes import PairedGap
from mimbench.scores.verdicts import Comparison, holm, verdict
from mimbench.system.errors import UserError, did_you_mean, printable
from mimbench.tables.columns import ran_as
from mimbench.tables.comparison import compare_measured, gap_of
from mimbench.tables.rows import Column, Row, Table

Kind = Literal["reference", "behind", "ahead", "cannot tell", "not compared"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One row against the row that its column is compared with."""

    kind: Kind
    short: str
    """For the cell."""
    sentence: str
    """For whoever wants to quote it; '' for the reference itself."""


@dataclass(frozen=True)
class Pair:
    """A row and the one that it is compared with, in one column."""

    row: Row
    reference: Row
    column: Column
    gap: PairedGap | None
    """Their difference under neighbouring settings of the recipe, where both were measured so."""
    result: Result
    found: Comparison


def standings(
    table: Table, runs: Sequence[Run], manifest: Manifest, *, against: str = ""
) -> dict[tuple[int, Column], Standing]:
    """Return (number of the row, column) -> how it stands.

    Args:
        table: The table of these runs.
        runs: All of them.
        manifest: Whose tasks may be imported.
        against: Name of a row to compare with; else each column's best.
    """
    out: dict[tuple[int, Column], Standing] = {}
    pairs: dict[tuple[int, Column], Pair] = {}
    numbered = [(i, row) for i, row in enumerate(table.rows) if row.kind == "measured"]
    if against and against not in (names := {row.label for _, row in numbered}):
        raise UserError(f"--against '{against}' is no row{did_you_mean(against, names)}")
    for column in table.columns:
        here = [(i, row) for i, row in numbered if _value(row, column) is not None]
        if len(here) < 2:  # nothing is the best of one
            continue
        best = (min if column.lower else max)(here, key=lambda pair: _value(pair[1], column) or 0.0)
        chosen = next((pair for pair in here if pair[1].label == against), None)
        if against and chosen is None:
            continue
        at, reference = chosen or best
        words = "compared with" if against else "best"
        out[at, column] = Standing(kind="reference", short=words, sentence="")
        for i, row in here:
            if i == at:
                continue
            try:
                pairs[i, column] = _compare(row, reference, column, runs, manifest.tasks)
            except UserError as error:
                reason = printable(str(error), 200)
                out[i, column] = Standing(
                    kind="not compared", short="not compared", sentence=f"{row.label}: {reason}"
                )
    return out | decided(pairs)


def _value(row: Row, column: Column) -> float | None:
    found = row.values.get(column)
    return found.value if found else None


def runs_of(row: Row, column: Column, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that a cell is made of."""
    name, digest = row.weights
    return [
        (p, r)
        for p, r in runs
        if (r.weights["name"], r.weights["digest"]) == (name, digest)
        and (r.benchmark, r.protocol, ran_as(r)) == (column.benchmark, column.protocol, column.ran)
        and r.status == "done"
    ]


def _compare(
    row: Row, reference: Row, column: Column, runs: Sequence[Run], tasks: Collection[str]
) -> Pair:
    mine, other = runs_of(row, column, runs), runs_of(reference, column, runs)
    found = compare_measured(mine, other, tasks)
    if found is None:
        raise UserError("no outcomes were kept that a comparison could use")
    return Pair(row, reference, column, gap_of(mine, other), *found)


def decided(pairs: Mapping[tuple[int, Column], Pair]) -> dict[tuple[int, Column], Standing]:
    """Return the standings of all pairs; their p-values are corrected together."""
    among = [pair.found.p for pair in pairs.values()]
    corrected = holm(among)
    out: dict[tuple[int, Column], Standing] = {}
    for (key, pair), p in zip(pairs.items(), corrected, strict=True):
        gap, result = pair.found.difference, pair.result
        clear = p < 1 - LEVEL and gap != 0 and (pair.gap is None or pair.gap.decided)
        worse = (gap < 0) != pair.column.lower
        kind: Kind = "cannot tell" if not clear else "behind" if worse else "ahead"
        once = clear and result.trains and pair.found.seeds is None
        out[key] = Standing(
            kind=kind,
            short=f"{gap:+.2f}{'†' if once else ''}" if clear else f"≈ {gap:+.2f}",
            sentence=verdict(
                pair.row.label,
                pair.reference.label,
                pair.found,
                trains=result.trains,
                lower=pair.column.lower,
                among=among,
                gap=pair.gap,
            ),
        )
    return out
