"""Ladders over our own benchmarks: the user's results and the published rows of the same recipes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mimbench.benchmarks.manifest import Manifest, Reference, Rungs
from mimbench.results.record import Result
from mimbench.system.errors import UserError
from mimbench.tables.columns import columns_of, ran_as
from mimbench.tables.ladder.judge import Ladder, LadderRow
from mimbench.tables.rows import Column
from mimbench.tables.table import TWIN


@dataclass(frozen=True, kw_only=True)
class OwnLadder:
    """A ladder and everything that is known to stand on it."""

    ladder: Ladder
    rows: tuple[LadderRow, ...]
    asked: tuple[LadderRow, ...]
    """The user's rows without the target."""
    published: bool
    """Published rows of the same recipes are among them."""


def own_ladders(
    results: Sequence[Result], manifest: Manifest, families: Mapping[str, str]
) -> list[OwnLadder]:
    """Return a ladder for each expensive benchmark and profile of which results hold a rung.

    Random twins stand on none: they would only make the others look predictable. A row's family is the
    format of its checkpoint, unless `families` says another by its name.
    """
    done = [r for r in results if r.status == "done" and not r.weights["name"].startswith(TWIN)]
    if unknown := sorted(set(families) - {r.weights["name"] for r in done}):
        raise UserError(f"--family names '{unknown[0]}', which no row is called")
    columns = columns_of(done, manifest)
    found = []
    for name, benchmark in manifest.benchmarks.items():
        rungs = benchmark.ladder
        for profile in dict.fromkeys(c.profile for c in columns) if rungs else ():
            if rungs and profile in benchmark.profiles:
                found += _ladder(name, rungs, profile, columns, done, manifest, families)
    return found


def _ladder(
    name: str,
    rungs: Rungs,
    profile: str,
    columns: Sequence[Column],
    done: Sequence[Result],
    manifest: Manifest,
    families: Mapping[str, str],
) -> list[OwnLadder]:
    wanted = dict.fromkeys((name, *rungs.cheap, rungs.top1))
    chosen = {b: c for b in wanted if (c := _column(b, profile, columns, done))}
    if not any(rung in chosen for rung in rungs.cheap):
        return []
    rows = _measured(done, chosen, families)
    published = profile == "paper" and all(column.official for column in chosen.values())
    if published:
        rows += _published(manifest.references, wanted, chosen)
    names = {b: manifest.benchmarks[b].title for b in wanted}
    suffix = f" [{profile}]" if profile != "paper" else ""
    ladder = Ladder(
        title=f"{names[name]}{suffix}",
        target=name,
        rungs=rungs.cheap,
        top1=rungs.top1,
        names=names,
    )
    mine = {row.model for row in rows} & {_label(r) for r in done}
    asked = [row for row in rows if row.model in mine and name not in row.values]
    asked = [row for row in asked if any(rung in row.values for rung in rungs.cheap)]
    return [OwnLadder(ladder=ladder, rows=tuple(rows), asked=tuple(asked), published=published)]


def _column(
    benchmark: str, profile: str, columns: Sequence[Column], done: Sequence[Result]
) -> Column | None:
    """Return the benchmark's column with the most results; two recipes never stand on one ladder."""
    mine = [c for c in columns if (c.benchmark, c.profile) == (benchmark, profile)]
    return max(mine, key=lambda c: sum(_in(r, c) for r in done), default=None)


def _in(result: Result, column: Column) -> bool:
    here = (result.benchmark, result.profile, result.protocol, ran_as(result))
    return here == (column.benchmark, column.profile, column.protocol, column.ran)


def _label(result: Result) -> str:
    return f"{result.weights['name']} ({result.weights['digest'][:6]})"


def _measured(
    done: Sequence[Result], chosen: Mapping[str, Column], families: Mapping[str, str]
) -> list[LadderRow]:
    groups: dict[str, list[Result]] = {}
    for r in done:
        groups.setdefault(_label(r), []).append(r)
    rows = []
    for label, mine in groups.items():
        values = {}
        for benchmark, column in chosen.items():
            if here := [r.metrics[column.metric] for r in mine if _in(r, column)]:
                values[benchmark] = fmean(here)
        who = mine[0].weights
        family = families.get(who["name"], who["format"])
        rows.append(LadderRow(model=label, family=family, values=values))
    return rows


def _published(
    references: Sequence[Reference], wanted: Collection[str], chosen: Mapping[str, Column]
) -> list[LadderRow]:
    """Return published checkpoints; numbers of one checkpoint may come from several sources."""
    metrics = {b: column.metric for b, column in chosen.items()}
    found: dict[tuple[str, str, int | None], dict[str, float]] = {}
    for r in references:
        # a metric that nobody measured here is the first that was published
        if r.protocol in wanted and metrics.setdefault(r.protocol, r.metric) == r.metric:
            found.setdefault((r.method, r.model, r.epochs), {})[r.protocol] = r.value
    return [
        LadderRow(
            model=" ".join([method, model, *([str(epochs)] if epochs else [])]),
            family=method.split(maxsplit=1)[0].lower().strip(","),
            values=values,
        )
        for (method, model, epochs), values in found.items()
    ]
