"""The table: a pure function of result files and published rows; nothing in it is remembered."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest, Reference
from mimbench.benchmarks.orders import RESULT_FILE, STALE
from mimbench.results.record import Result, read_result
from mimbench.tables.rows import Column, Row, Table, Value

TWIN = "random-"
"""How rows of random weights begin: they stand below what they are a measure for."""
METHOD_OF_FORMAT = {
    "hpm": "HPM",
    "mae": "MAE",
    "automae": "AutoMAE",
    "dino": "DINO",
    "ibot": "iBOT",
}


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
    columns = _columns(results, manifest)
    measured = _measured(results, columns, manifest, choice or {})
    published = _published(manifest.references, columns)
    notes = [
        f"{r.benchmark} for {r.weights['name']} failed: {first_line(r.error)}"
        for r in results
        if r.status == "failed"
    ]
    return Table(columns, [*_mark_best(measured), *published], notes)


def first_line(text: str) -> str:
    """Return the first line of a message."""
    return text.strip().splitlines()[0] if text.strip() else ""


def _columns(results: Sequence[Result], manifest: Manifest) -> list[Column]:
    order = {name: i for i, name in enumerate(manifest.benchmarks)}
    known: dict[tuple[str, str], Column] = {}
    for r in results:
        failed_only = r.status == "failed" and not r.protocol
        key = (r.benchmark, r.protocol)
        if key in known or failed_only:
            continue
        title = manifest.benchmarks[r.benchmark].title if r.benchmark in order else r.benchmark
        # a failure under the same protocol may have another recipe behind it: all must be the paper's
        official = all(
            o.profile == "paper" and not o.overrides and not _own(o)
            for o in results
            if (o.benchmark, o.protocol) == key
        )
        known[key] = Column(r.benchmark, r.profile, r.protocol, title, r.main_metric, official)
    for r in results:
        if all(c.benchmark != r.benchmark for c in known.values()):
            title = manifest.benchmarks[r.benchmark].title if r.benchmark in order else r.benchmark
            known[r.benchmark, r.protocol] = Column(
                r.benchmark, r.profile, r.protocol, title, r.main_metric, official=False
            )
    return sorted(
        known.values(),
        key=lambda c: (order.get(c.benchmark, len(order)), c.benchmark, not c.official, c.protocol),
    )


def _own(result: Result) -> bool:
    return str(result.config.get("dataset", "")).startswith("own-")


def _measured(
    results: Sequence[Result],
    columns: Sequence[Column],
    manifest: Manifest,
    choice: Mapping[str, str],
) -> list[Row]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.weights["name"], r.weights["digest"]), []).append(r)
    names = [name for name, _ in groups]
    rows = []
    for (name, digest), mine in groups.items():
        label = name if names.count(name) == 1 else f"{name} ({digest[:6]})"
        values = {}
        for column in columns:
            here = [
                r
                for r in mine
                if r.benchmark == column.benchmark and r.protocol in (column.protocol, "")
            ]
            if here:
                values[column] = _value(here, column, manifest, choice.get(name, ""))
        rows.append(Row(label=label, kind="measured", values=values))
    return sorted(rows, key=lambda row: row.label.startswith(TWIN))


def _value(here: Sequence[Result], column: Column, manifest: Manifest, choice: str) -> Value:
    done = [r for r in here if r.status == "done"]
    if not done:
        return Value(value=None, error=first_line(here[0].error))
    numbers = [r.metrics[column.metric] for r in done]
    mean = statistics.fmean(numbers)
    reference = match(done[0], column, manifest.references, choice) if column.official else None
    found = [r.intervals.get(column.metric) for r in done]
    halves = [x for x in found if x is not None]
    draw_sd, draws = _draws(done, column.metric)
    return Value(
        value=mean,
        interval=statistics.fmean(halves) if len(halves) == len(done) else None,
        spread=statistics.stdev(numbers) if len(numbers) > 1 else None,
        seeds=len(numbers),
        draw_sd=draw_sd,
        draws=draws,
        difference=mean - reference.value if reference else None,
    )


def _draws(done: Sequence[Result], metric: str) -> tuple[float | None, int]:
    """Return the spread over draws of the training images, and how many there were."""
    counts = [r.draws for r in done]
    found = [r.metrics.get(f"{metric}_sd") for r in done]
    sds = [x for x, count in zip(found, counts, strict=True) if x is not None and count > 1]
    return (statistics.fmean(sds), max(counts)) if len(sds) == len(done) else (None, 1)


def match(
    result: Result, column: Column, references: Sequence[Reference], choice: str = ""
) -> Reference | None:
    """Return the one published row that the checkpoint should reproduce, or None if that is unclear.

    The family comes from the checkpoint's format, pretraining epochs from a number in its name
    (800 or, counted from zero, 0799); the user's own choice `method epochs` comes before both.
    """
    rows = [
        r
        for r in references
        if r.protocol == column.benchmark
        and r.metric == column.metric
        and r.model == result.weights.get("model")
    ]
    if choice:
        method, _, epochs = choice.rpartition(" ") if choice[-1].isdigit() else (choice, "", "")
        rows = [r for r in rows if r.method == method and (not epochs or r.epochs == int(epochs))]
    else:
        rows = [r for r in rows if r.method == METHOD_OF_FORMAT.get(result.weights["format"])]
        numbers = {int(n) for n in re.findall(r"\d+", result.weights["name"])}
        named = [
            r
            for r in rows
            if r.epochs is not None and (r.epochs in numbers or r.epochs - 1 in numbers)
        ]
        rows = named or rows
    return rows[0] if len({(r.method, r.epochs) for r in rows}) == 1 else None


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    tops: dict[Column, float] = {}
    counts: dict[Column, int] = {}
    for row in rows:
        for column, value in row.values.items():
            if value.value is not None:
                tops[column] = max(tops.get(column, value.value), value.value)
                counts[column] = counts.get(column, 0) + 1
    return [
        Row(
            label=row.label,
            kind=row.kind,
            source=row.source,
            values={
                c: Value(**{**v.__dict__, "best": counts.get(c, 0) > 1 and v.value == tops[c]})
                for c, v in row.values.items()
            },
        )
        for row in rows
    ]


def _published(references: Sequence[Reference], columns: Sequence[Column]) -> list[Row]:
    rows: dict[tuple[str, str, int | None, str], dict[Column, Value]] = {}
    for reference in references:
        for column in columns:
            if column.official and (reference.protocol, reference.metric) == (
                column.benchmark,
                column.metric,
            ):
                key = (reference.method, reference.model, reference.epochs, reference.source)
                rows.setdefault(key, {})[column] = Value(value=reference.value)
    return [
        Row(
            label=f"{method} {model}" + (f", {epochs} ep" if epochs else ""),
            kind="published",
            values=values,
            source=source,
        )
        for (method, model, epochs, source), values in rows.items()
    ]
