"""May a ladder be trusted: leave one row out at a time, and refuse where that shows nothing.

Each reason to refuse was fixed before any number was looked at (docs/numbers/uncertainty.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mimbench.tables.ladder.regression import LEVEL, Predicted, predict

LEAST_ROWS = 11
"""With target and every rung: ten rows predict the eleventh."""
LEAST_FAMILY = 2
"""Other rows of a family without which nothing is said of it."""
LEAST_TESTED = 8
"""Rows that could be left out and predicted."""
MARGIN = 0.8
"""Of the error that it has to beat: with a dozen rows, rungs that say nothing beat it one time in five,
but by a fifth one time in thirty."""
CHANCE = 0.05
"""Fewer covered rows than chance gives an honest interval this often: the intervals are too short."""


@dataclass(frozen=True, kw_only=True)
class LadderRow:
    """One checkpoint: what is known of it, by cell."""

    model: str
    family: str
    """Of its pretraining; what one family's rows say need not hold for another."""
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """What is predicted from what."""

    title: str
    target: str
    """A cell."""
    rungs: tuple[str, ...]
    """Cells of cheap dense benchmarks; chosen beforehand, never by their fit."""
    top1: str
    """The cell that people would look at instead."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Cell -> what people call it."""

    def name(self, cell: str) -> str:
        """Return what people call a cell."""
        return self.names.get(cell, cell)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """One row predicted from the others, by the ladder and by what it has to beat."""

    row: LadderRow
    true: float
    ladder: Predicted
    mean: Predicted
    top1: Predicted | None
    """None: the top-1 of some row is not known."""


@dataclass(frozen=True, kw_only=True)
class TestedLadder:
    """A ladder after every row was left out once."""

    ladder: Ladder
    rows: tuple[LadderRow, ...]
    """Those with the target and every rung."""
    left_out: tuple[LeftOut, ...]
    """Rows whose family has others enough."""
    reason: str = ""
    """Why it cannot tell anything; empty where it can."""

    @property
    def covered(self) -> int:
        """Return how many left-out rows lie in their interval."""
        return sum(one.ladder.covers(one.true) for one in self.left_out)

    def error(self, by: str) -> float | None:
        """Return the mean absolute error in points of `ladder`, `mean` or `top1`."""
        found: list[Predicted | None] = [getattr(one, by) for one in self.left_out]
        if not found:
            return None
        pairs = [
            (p, one.true) for p, one in zip(found, self.left_out, strict=True) if p is not None
        ]
        return (
            sum(abs(p.value - t) for p, t in pairs) / len(pairs)
            if len(pairs) == len(found)
            else None
        )


@dataclass(frozen=True, kw_only=True)
class LadderAnswer:
    """What a ladder says of one row without the expensive number."""

    model: str
    family: str
    predicted: Predicted | None = None
    reason: str = ""
    """Why it cannot tell."""


def check(ladder: Ladder, rows: Sequence[LadderRow]) -> TestedLadder:
    """Return the ladder with the rows that it stands on, tested, and refused where that is the truth."""
    wanted = (ladder.target, *ladder.rungs)
    whole = tuple(row for row in rows if all(cell in row.values for cell in wanted))
    if len(whole) < LEAST_ROWS:
        having = sum(ladder.target in row.values for row in rows)
        reason = (
            f"{_rows(len(whole))} with {ladder.name(ladder.target)} and every rung "
            f"({_rows(having)} with the former alone); it takes {LEAST_ROWS}"
        )
        return TestedLadder(ladder=ladder, rows=whole, left_out=(), reason=reason)
    tested = tuple(
        _leave_out(ladder, row, others)
        for i, row in enumerate(whole)
        if family_size(row.family, others := [*whole[:i], *whole[i + 1 :]]) >= LEAST_FAMILY
    )
    checked = TestedLadder(ladder=ladder, rows=whole, left_out=tested)
    return TestedLadder(ladder=ladder, rows=whole, left_out=tested, reason=refusal(checked))


def _leave_out(ladder: Ladder, row: LadderRow, others: Sequence[LadderRow]) -> LeftOut:
    everywhere = all(ladder.top1 in r.values for r in (row, *others))
    return LeftOut(
        row=row,
        true=row.values[ladder.target],
        ladder=from_rows(ladder.target, ladder.rungs, row, others),
        mean=from_rows(ladder.target, (), row, others),
        top1=from_rows(ladder.target, (ladder.top1,), row, others) if everywhere else None,
    )


def from_rows(
    target: str, rungs: Sequence[str], row: LadderRow, others: Sequence[LadderRow]
) -> Predicted:
    """Return a row's target as other rows predict it."""
    known = [[other.values[cell] for cell in rungs] for other in others]
    return predict(known, [o.values[target] for o in others], [row.values[cell] for cell in rungs])


def family_size(family: str, rows: Sequence[LadderRow]) -> int:
    """Return how many rows are of a family."""
    return sum(row.family == family for row in rows)


def refusal(checked: TestedLadder) -> str:
    """Return why a tested ladder cannot tell anything; empty where it can."""
    tested, covered = len(checked.left_out), checked.covered
    if tested < LEAST_TESTED:
        return (
            f"only {tested} of {len(checked.rows)} rows have {LEAST_FAMILY} others of their family; "
            f"it takes {LEAST_TESTED}"
        )
    if at_most(covered, tested, LEVEL) < CHANCE:
        return f"its 90 % intervals cover {covered} of {tested} rows that were left out"
    mine = checked.error("ladder") or 0.0
    for by, words in (("mean", "the mean of the rows"), ("top1", "top-1 alone")):
        other = checked.error(by)
        if other is not None and mine > MARGIN * other:
            return f"it errs by {mine:.2f} points where {words} errs by {other:.2f}"
    return ""


def at_most(count: int, of: int, share: float) -> float:
    """Return the chance of at most `count` of `of` where each has the chance `share`."""
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(count + 1))


def answer(checked: TestedLadder, row: LadderRow) -> LadderAnswer:
    """Return what a ladder says of a row that has not the target."""
    ladder = checked.ladder
    lacking = [ladder.name(cell) for cell in ladder.rungs if cell not in row.values]
    reason = f"it lacks {', '.join(lacking)}" if lacking else checked.reason
    kin = family_size(row.family, checked.rows)
    if not reason and kin < LEAST_FAMILY:
        known = ", ".join(sorted({r.family for r in checked.rows}))
        reason = f"{_rows(kin)} of the family '{row.family}', it takes {LEAST_FAMILY}; known families: {known}"
    if reason:
        return LadderAnswer(model=row.model, family=row.family, reason=reason)
    found = from_rows(ladder.target, ladder.rungs, row, checked.rows)
    return LadderAnswer(model=row.model, family=row.family, predicted=found)


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"
