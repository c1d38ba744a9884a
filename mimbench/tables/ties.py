"""Which values of a column are the best: the one on top, and all that nothing separates from it.

A table knows intervals and spreads, not the outcomes behind them: two values differ where their
difference is more than both intervals over test images allow, and with two or more seeds of each more
than Welch's interval over seeds allows too. Where neighbouring settings of the recipe were measured for
both, a difference that changes its sign among them is none. `compare` looks at the same images pair by pair and sees more.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from mimbench.scores.recipes import paired_gap
from mimbench.scores.verdicts import welch
from mimbench.tables.rows import Column, Row, Value


def mark_best(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the best values of each column marked, where there are two or more."""
    columns = dict.fromkeys(c for row in rows for c in row.values)
    best: dict[Column, list[Value]] = {}
    for column in columns:
        values = [v for row in rows if (v := row.values.get(column)) and v.value is not None]
        if len(values) > 1:
            best[column] = tied_with_top(values, lower=column.lower)
    return [
        replace(
            row,
            values={
                c: replace(v, best=any(v is one for one in best.get(c, ())))
                for c, v in row.values.items()
            },
        )
        for row in rows
    ]


def tied_with_top(values: Sequence[Value], *, lower: bool) -> list[Value]:
    """Return the best value and all that are tied with it."""
    pick = min if lower else max
    top = pick(values, key=lambda v: v.value or 0.0)
    return [v for v in values if v is top or tied(v, top)]


def tied(a: Value, b: Value) -> bool:
    """Return whether nothing tells two values apart."""
    if a.value is None or b.value is None:
        return False
    gap = abs(a.value - b.value)
    if gap == 0:
        return True
    images = a.interval is not None and b.interval is not None
    if images and gap <= math.hypot(a.interval or 0.0, b.interval or 0.0):
        return True
    recipes = paired_gap(a.value, a.gap, b.value, b.gap)
    if recipes is not None and not recipes.decided:
        return True
    seeds = welch(a.each, b.each)
    return seeds is not None and seeds.interval.covers(0.0)
