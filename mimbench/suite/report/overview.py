"""The answer at a glance: each checkpoint against its random twin and the published row, from the table.

Nothing is measured here. The values, intervals and published rows are the table's, and two values
differ where the table says so (`mimbench.tables.ties`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from mimbench.suite.report.markup import text
from mimbench.suite.report.strips import Dot, Lane, Strip, Verdict, draw, key
from mimbench.tables.formats import heading, text_of
from mimbench.tables.rows import Column, Row, Table, Value
from mimbench.tables.ties import ties

PUBLISHED = "published"


def strips_of(table: Table) -> list[Strip]:
    """Return a strip for each column of the table."""
    measured = measured_rows(table)
    return [
        Strip(
            title=heading(column, table),
            unit=column.metric.replace("_", " "),
            lower=column.lower,
            lanes=[
                *(_lane(row, i, column, twin_of(row, measured)) for i, row in enumerate(measured)),
                *_published(table, column),
            ],
        )
        for column in table.columns
    ]


def measured_rows(table: Table) -> list[Row]:
    """Return the rows that were measured, random twins last."""
    return [row for row in table.rows if row.kind == "measured"]


def twin_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the random weights of the same architecture."""
    if row.twin:
        return None
    return next((other for other in rows if other.twin and other.model == row.model), None)


def verdict(row: Row, twin: Row | None, column: Column) -> Verdict:
    """Return how a row stands to its random twin; '' without values, intervals or seeds of both."""
    mine, other = row.values.get(column), twin.values.get(column) if twin else None
    if mine is None or other is None or mine.value is None or other.value is None:
        return ""
    if not all(v.interval is not None or len(v.each) > 1 for v in (mine, other)):
        return ""
    both = {c: (v, twin.values[c]) for c, v in row.values.items() if twin and c in twin.values}
    if dict(zip(both, ties(list(both.values())), strict=True))[column]:
        return "cannot tell"
    return "better" if (mine.value < other.value) == column.lower else "worse"


def _lane(row: Row, index: int, column: Column, twin: Row | None) -> Lane:
    value = row.values.get(column)
    return Lane(
        label=row.label,
        kind="twin" if row.twin else "row",
        index=index,
        dots=[_dot(row.label, value)] if value and value.value is not None else [],
        words="not run" if value is None else text_of(value),
        verdict=verdict(row, twin, column),
        gap=_gap(value, twin.values.get(column) if twin else None),
    )


def _gap(mine: Value | None, other: Value | None) -> str:
    if mine is None or other is None or mine.value is None or other.value is None:
        return ""
    return f"{mine.value - other.value:+.2f}"


def _dot(label: str, value: Value) -> Dot:
    assert value.value is not None
    each = value.each if len(value.each) > 1 else ()
    return Dot(
        label=label, value=value.value, half=value.interval, each=each, recipe=value.gap_ends
    )


def _published(table: Table, column: Column) -> list[Lane]:
    """Return the lane of the column's published rows, those that were subtracted first."""
    found = [
        (row, value)
        for row in table.rows
        if row.kind != "measured" and (value := row.values.get(column)) is not None
    ]
    if not found:
        return []
    matched = {v.against for row in table.rows if (v := row.values.get(column)) and v.against}
    found.sort(key=lambda pair: pair[0].label not in matched)
    dots = [
        replace(_dot(f"{row.label} [{row.source}]", value), matched=row.label in matched)
        for row, value in found
    ]
    values = [dot.value for dot in dots]
    words = f"{values[0]:.2f} {found[0][0].label}"
    if len(dots) > 1:
        between = f"{min(values):.2f} to {max(values):.2f}, {len(dots)} rows"
        words = f"{words}, {len(dots) - 1} more" if dots[0].matched else between
    return [Lane(label=PUBLISHED, kind="published", dots=dots, words=words)]


def sentences(table: Table) -> list[str]:
    """Return for each checkpoint what the picture shows, in words."""
    rows = measured_rows(table)
    lines = []
    for row in rows:
        if row.twin:
            continue
        twin = twin_of(row, rows)
        if twin is None:
            lines.append(
                f"{row.label}: no random twin ran, so there is nothing to hold it against."
            )
            continue
        counts = Counter(verdict(row, twin, column) for column in table.columns)
        known = sum(n for words, n in counts.items() if words)
        lines.append(
            f"{row.label}: better than random weights in {counts['better']} of {known} benchmarks "
            f"with intervals, worse in {counts['worse']}, cannot tell in {counts['cannot tell']}."
        )
    return lines


def overview(table: Table) -> list[str]:
    """Return the picture on top of the page: sentences, key, strips."""
    strips = strips_of(table)
    lanes = {(lane.kind, lane.index): lane for strip in strips for lane in strip.lanes}
    order = {"row": 0, "twin": 1, "published": 2}
    shown = sorted(lanes.values(), key=lambda lane: (order[lane.kind], lane.index))
    note = (
        "Dot: value. Line: 95 % interval over test images. Right is better on every axis. "
        "Wide band, where it was measured: how far neighbouring settings of the recipe move the value. "
        "▲ ▼ ≈: against random weights of the same shape, intervals compared without "
        "pairing, all columns of a checkpoint corrected together (Holm)."
    )
    return [
        *(f'<p class="answer">{text(line)}</p>' for line in sentences(table)),
        key(shown),
        f'<div class="strips">{"".join(draw(strip) for strip in strips)}</div>',
        f'<p class="soft">{text(note)} <code>python -m mimbench compare</code> pairs the images and '
        "sees more.</p>",
    ]
