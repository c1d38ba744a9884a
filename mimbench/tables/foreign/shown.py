"""Imported rows beside measured ones: in a column of ours only where the protocol is the same, never marked as best."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest
from mimbench.results.record import Result
from mimbench.system.errors import UserError, did_you_mean
from mimbench.tables.columns import columns_of, ran_as
from mimbench.tables.foreign.rows import ForeignRow, read_rows
from mimbench.tables.formats import text_of
from mimbench.tables.rows import Column, Row, Table, Value
from mimbench.tables.table import value_of


def read_all(paths: Sequence[Path]) -> list[ForeignRow]:
    """Return the rows of several files and folders."""
    return [row for path in paths for row in read_rows(path)]


def same_protocol(row: ForeignRow, column: Column, manifest: Manifest) -> bool:
    """Return whether a number is of a column's own protocol and metric."""
    known = manifest.protocols.get(column.benchmark)
    return (
        column.official
        and known is not None
        and row.protocol in known.also
        and row.metric == column.metric
    )


def with_imported(table: Table, rows: Sequence[ForeignRow], manifest: Manifest) -> Table:
    """Return a table with imported rows below everything else.

    Args:
        table: What was measured and published.
        rows: What is shown beside it.
        manifest: Which of their protocols are ours.
    """
    if not rows:
        return table
    places: dict[tuple[str, ...], Column] = {}
    notes: list[str] = []
    for row in rows:
        key = (row.benchmark, row.dataset, row.metric, row.protocol)
        if key in places:
            continue
        ours = [c for c in table.columns if same_protocol(row, c, manifest)]
        number = len(notes) + 1
        places[key] = ours[0] if ours else _column(row, number)
        if not ours:
            notes.append(f"[{number}] {row.benchmark} on {row.dataset}: {row.protocol}")
    new = [c for c in places.values() if c not in table.columns]
    shown = [*_rows(rows, places)]
    notes += [f"imported, not measured here: {line}" for line in sources(rows)]
    return Table([*table.columns, *new], [*table.rows, *shown], [*table.notes, *notes])


def _column(row: ForeignRow, number: int) -> Column:
    return Column(
        # unlike any benchmark's name: the number keeps recipes apart
        f"{row.protocol} [{number}]",
        "paper",
        "",
        f"{row.benchmark} {row.metric} [{number}]",
        row.metric,
        official=False,
        lower=row.lower_is_better,
    )


def _rows(rows: Sequence[ForeignRow], places: Mapping[tuple[str, ...], Column]) -> Iterator[Row]:
    groups: dict[tuple[str, str, str, str], list[ForeignRow]] = {}
    for row in rows:
        groups.setdefault((row.model, row.setting, row.source, row.licence), []).append(row)
    names = [model for model, *_ in groups]
    for (model, setting, source, licence), mine in groups.items():
        cells: dict[Column, list[float]] = {}
        for row in mine:
            place = places[row.benchmark, row.dataset, row.metric, row.protocol]
            cells.setdefault(place, []).append(row.value)
        yield Row(
            label=model if names.count(model) == 1 or not setting else f"{model} ({setting})",
            kind="imported",
            values={column: mean_of(values) for column, values in cells.items()},
            source=f"{source} ({licence})",
        )


def mean_of(values: Sequence[float]) -> Value:
    """Return the mean over seeds, with their spread."""
    return Value(
        value=statistics.fmean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        seeds=len(values),
        each=tuple(values),
    )


def sources(rows: Sequence[ForeignRow]) -> list[str]:
    """Return source and licence of rows, with how many models each gives."""
    models: dict[str, set[str]] = {}
    for row in rows:
        models.setdefault(f"{row.source} ({row.licence})", set()).add(row.model)
    return [f"{source}: {len(names)} models" for source, names in models.items()]


def choose_imported(rows: Sequence[ForeignRow], model: str) -> list[ForeignRow]:
    """Return the rows of a model, or fail with the names there are."""
    found = [row for row in rows if row.model == model]
    if not found:
        raise UserError(
            f"no imported row of '{model}'" + did_you_mean(model, {r.model for r in rows})
        )
    return found


def describe_imported(
    results: Sequence[Result], rows: Sequence[ForeignRow], manifest: Manifest
) -> list[str]:
    """Return the comparison of a measured row with a model's imported numbers.

    Args:
        results: Finished runs of one checkpoint.
        rows: Of one model.
        manifest: Which of their protocols are ours.
    """
    lines = []
    columns = columns_of(results, manifest)
    for row in rows:
        shown = f"{row.value:.2f} {row.metric} of {row.model} [{row.source}, {row.licence}]"
        ours = [c for c in columns if same_protocol(row, c, manifest)]
        for column in ours:
            mine = [r for r in results if _in(r, column)]
            value = value_of(mine, column)
            assert value.value is not None
            lines.append(
                f"{column.benchmark}: {text_of(value)} measured, {shown}: "
                f"measured - imported = {value.value - row.value:+.2f}"
            )
        if not ours:
            lines.append(
                f"{row.benchmark} on {row.dataset}: {shown}; nothing was run here under "
                f"'{row.protocol}': no difference is given"
            )
    return lines


def _in(result: Result, column: Column) -> bool:
    mine = (result.benchmark, result.protocol, ran_as(result))
    return mine == (column.benchmark, column.protocol, column.ran)
