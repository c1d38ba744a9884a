"""The table: a pure function of result files and published rows; nothing in it is remembered."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.benchmarks.run_config import RESULT_FILE, STALE
from mimbench.results.record import NOT_AUDITED, Result, read_result
from mimbench.tables.columns import columns_of, ran_as
from mimbench.tables.published import Match, match
from mimbench.tables.rows import Column, Row, Table, Value
from mimbench.tables.ties import mark_best

TWIN = "random-"
"""How rows of random weights begin: they stand below what they are a measure for."""


def read_results(root: Path) -> list[Result]:
    """Return all results under an output folder, in a fixed order."""
    return [result for _, result in read_results_with_folders(root)]


def read_results_with_folders(root: Path) -> list[tuple[Path, Result]]:
    """Return (folder, result) for all results under an output folder, in a fixed order."""
    paths = sorted(root.glob(f"*/*/{RESULT_FILE}"))
    return [(p.parent, read_result(p)) for p in paths if STALE not in p.parent.name]


def make_table(
    results: Iterable[Result], manifest: Manifest, *, choice: Mapping[str, str] | None = None
) -> Table:
    """Return the table of the results.

    Args:
        results: All results, failed ones included.
        manifest: Order and titles of the columns, published rows.
        choice: Row name -> `method epochs` of the published row to compare with, where the user says.
    """
    results = list(results)
    columns = columns_of(results, manifest)
    unmatched: list[str] = []
    measured = _measured(results, columns, manifest, choice or {}, unmatched)
    published = _published(manifest.references, columns)
    notes = [
        f"{r.benchmark} for {r.weights['name']} failed: {first_line(r.error)}"
        for r in results
        if r.status == "failed"
    ]
    remarks = [*notes, *_beside(results, columns), *dict.fromkeys(unmatched)]
    return Table(columns, [*mark_best(measured), *published], remarks)


def _beside(results: Sequence[Result], columns: Sequence[Column]) -> list[str]:
    """Return a line for each row and column whose task measures something to be read beside it."""
    lines: dict[str, None] = {}
    for column in columns:
        for r in results:
            if (r.benchmark, r.protocol, ran_as(r)) != (
                column.benchmark,
                column.protocol,
                column.ran,
            ):
                continue
            found = [
                f"{words} {r.metrics[metric]:.2f}"
                + (f" ±{r.intervals[metric]:.2f}" if metric in r.intervals else "")
                for metric, words in r.beside.items()
                if metric in r.metrics
            ]
            if found:
                lines[f"{column.title} of {r.weights['name']}: {', '.join(found)}"] = None
    return list(lines)


def first_line(text: str) -> str:
    """Return the first line of a message."""
    return text.strip().splitlines()[0] if text.strip() else ""


def _measured(
    results: Sequence[Result],
    columns: Sequence[Column],
    manifest: Manifest,
    choice: Mapping[str, str],
    unmatched: list[str],
) -> list[Row]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.weights["name"], r.weights["digest"]), []).append(r)
    names = [name for name, _ in groups]
    rows = []
    for (name, digest), mine in groups.items():
        label = name if names.count(name) == 1 else f"{name} ({digest[:6]})"
        if mine[0].weights.get("audit") == NOT_AUDITED:
            label = f"{label} ({NOT_AUDITED})"
        values = {}
        for column in columns:
            here = [
                r
                for r in mine
                if r.benchmark == column.benchmark
                and r.protocol in (column.protocol, "")
                and (r.status == "failed" or ran_as(r) == column.ran)
            ]
            if not here:
                continue
            found = _reference(here, column, manifest, choice.get(name, ""))
            values[column] = value_of(here, column, found.reference)
            if found.reason:
                unmatched.append(
                    f"no published row is subtracted from {label} in {column.title}: {found.reason}"
                )
        model, twin = str(mine[0].weights.get("model", "")), name.startswith(TWIN)
        rows.append(
            Row(
                label=label,
                kind="measured",
                values=values,
                model=model,
                weights=(name, digest),
                twin=twin,
            )
        )
    return sorted(rows, key=lambda row: row.twin)


def _reference(here: Sequence[Result], column: Column, manifest: Manifest, choice: str) -> Match:
    done = [r for r in here if r.status == "done"]
    if not done or not column.official:
        return Match()
    return match(done[0], column, manifest.references, choice)


def value_of(here: Sequence[Result], column: Column, reference: Reference | None = None) -> Value:
    """Return what stands in a cell: the mean over seeds of runs of one checkpoint under one protocol."""
    done = [r for r in here if r.status == "done"]
    if not done:
        return Value(value=None, error=first_line(here[0].error))
    numbers = [r.metrics[column.metric] for r in done]
    mean = statistics.fmean(numbers)
    found = [r.intervals.get(column.metric) for r in done]
    halves = [x for x in found if x is not None]
    errors = [x for r in done if (x := r.interval_errors.get(column.metric)) is not None]
    draw_sd, draws = _draws(done, column.metric)
    return Value(
        value=mean,
        interval=statistics.fmean(halves) if len(halves) == len(done) else None,
        interval_error=max(errors, default=None),
        spread=statistics.stdev(numbers) if len(numbers) > 1 else None,
        seeds=len(numbers),
        each=tuple(numbers),
        draw_sd=draw_sd,
        draws=draws,
        difference=mean - reference.value if reference else None,
        against=published_label(reference) if reference else "",
        gap=mean_gap(done),
    )


def mean_gap(done: Sequence[Result]) -> dict[str, float]:
    """Return setting -> mean over seeds, of settings that every seed was measured with."""
    each = [r.gap.values if r.gap and r.gap.complete else {} for r in done]
    shared = [name for name in each[0] if all(name in values for values in each)] if each else []
    return {name: statistics.fmean(values[name] for values in each) for name in shared}


def _draws(done: Sequence[Result], metric: str) -> tuple[float | None, int]:
    """Return the spread over draws of the training images, and how many there were."""
    counts = [r.draws for r in done]
    found = [r.metrics.get(f"{metric}_sd") for r in done]
    sds = [x for x, count in zip(found, counts, strict=True) if x is not None and count > 1]
    return (statistics.fmean(sds), max(counts)) if len(sds) == len(done) else (None, 1)


def _published(references: Sequence[Reference], columns: Sequence[Column]) -> list[Row]:
    rows: dict[tuple[str, str], dict[Column, Value]] = {}
    for reference in references:
        for column in columns:
            if column.official and (reference.protocol, reference.metric) == (
                column.benchmark,
                column.metric,
            ):
                key = (published_label(reference), reference.source)
                rows.setdefault(key, {})[column] = Value(value=reference.value)
    return [
        Row(label=label, kind="published", values=values, source=source)
        for (label, source), values in rows.items()
    ]


def published_label(reference: Reference) -> str:
    """Return what the row of a published number is called."""
    epochs = f", {reference.epochs} ep" if reference.epochs else ""
    return f"{reference.method} {reference.model}{epochs}"
