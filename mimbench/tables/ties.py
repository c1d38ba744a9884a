"""Which values of a column are the best: the one on top, and all that nothing separates from it.

A table knows intervals and spreads, not the outcomes behind them: two values differ where their
difference is more than both intervals over test images allow, and with two or more seeds of each more
than Welch's interval over seeds allows too. A table holds many such comparisons, so they are corrected
together (Holm). Where neighbouring settings of the recipe were measured for both, a difference that
changes its sign among them is none. `compare` looks at the same images pair by pair and sees more.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

from mimbench.scores.confidence import LEVEL
from mimbench.scores.recipes import paired_gap
from mimbench.scores.verdicts import holm, welch
from mimbench.tables.rows import Row, Value

Pair = tuple[Value, Value]


def mark_best(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the best values of each column marked, where there are two or more."""
    columns = dict.fromkeys(c for row in rows for c in row.values)
    tops: list[Value] = []
    pairs: list[Pair] = []
    for column in columns:
        values = [v for row in rows if (v := row.values.get(column)) and v.value is not None]
        if len(values) > 1:
            pick = min if column.lower else max
            top = pick(values, key=lambda v: v.value or 0.0)
            tops.append(top)
            pairs += [(v, top) for v in values if v is not top]
    level = zip(pairs, ties(pairs), strict=True)
    best = {id(top) for top in tops} | {id(v) for (v, _), tied in level if tied}
    return [
        replace(row, values={c: replace(v, best=id(v) in best) for c, v in row.values.items()})
        for row in rows
    ]


def ties(pairs: Sequence[Pair]) -> list[bool]:
    """Return for each pair whether nothing tells its values apart; all of them are corrected together."""
    found = [difference_p(a, b) for a, b in pairs]
    corrected = iter(holm([p for p in found if p is not None]))
    return [
        (p is not None and next(corrected) >= 1 - LEVEL) or _inside_gap(a, b)
        for (a, b), p in zip(pairs, found, strict=True)
    ]


def difference_p(a: Value, b: Value) -> float | None:
    """Return the p-value of the difference of two values, 1 for equal ones; None where nothing is known.

    Test images and, where both have several, seeds must agree.
    """
    if a.value is None or b.value is None:
        return None
    gap = abs(a.value - b.value)
    if gap == 0:
        return 1.0
    known: list[float] = []
    if a.interval is not None and b.interval is not None:
        half = math.hypot(a.interval, b.interval)
        deviations = NormalDist().inv_cdf((1 + LEVEL) / 2) * gap / half if half else math.inf
        known.append(math.erfc(deviations / math.sqrt(2)))
    if seeds := welch(a.each, b.each):
        known.append(seeds.p)
    return max(known, default=None)


def _inside_gap(a: Value, b: Value) -> bool:
    if a.value is None or b.value is None:
        return False
    recipes = paired_gap(a.value, a.gap, b.value, b.gap)
    return recipes is not None and not recipes.decided
