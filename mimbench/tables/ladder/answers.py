"""Every ladder with what it says of the rows that were asked about, as text or JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimbench.benchmarks.manifest import Manifest
from mimbench.results.record import Result
from mimbench.tables.foreign.rows import ForeignRow
from mimbench.tables.ladder.judge import LadderAnswer, LeftOut, TestedLadder, answer, check
from mimbench.tables.ladder.own_rows import own_ladders
from mimbench.tables.ladder.public_rows import (
    imported,
    ladders_of,
    public_tables,
    read_table,
    with_families,
)
from mimbench.tables.ladder.regression import Predicted

NOTE = "predictions, not measurements: they enter no table"


@dataclass(frozen=True, kw_only=True)
class LadderAnswers:
    """One ladder: tested, and asked."""

    checked: TestedLadder
    answers: tuple[LadderAnswer, ...]
    source: str


def from_results(
    results: Sequence[Result], manifest: Manifest, families: Mapping[str, str]
) -> list[LadderAnswers]:
    """Return what the user's results, and the published rows of the same recipes, say of one another."""
    found = own_ladders(results, manifest, families)
    words = {False: "these results", True: "these results and published rows"}
    return [_asked(check(o.ladder, o.rows), o.asked, words[o.published]) for o in found]


def from_public(rows: Sequence[ForeignRow], families: Mapping[str, str]) -> list[LadderAnswers]:
    """Return what the tables that ship with us say of imported rows."""
    found = []
    for table in public_tables():
        known, protocols = read_table(table)
        names = {row.model for row in known}
        asked = with_families(imported(rows, protocols, names), families)
        for ladder in ladders_of(table):
            mine = [row for row in asked if ladder.target not in row.values]
            found.append(_asked(check(ladder, known), mine, f"{table.source} ({table.licence})"))
    return found


def _asked(checked: TestedLadder, asked: Sequence[Any], source: str) -> LadderAnswers:
    answers = tuple(answer(checked, row) for row in asked)
    return LadderAnswers(checked=checked, answers=answers, source=source)


def as_text(found: Sequence[LadderAnswers], *, every: bool = False) -> str:
    """Return the ladders for people.

    Args:
        found: The ladders.
        every: Show each row that was left out, too.
    """
    lines = [f"{NOTE}. 90 % intervals for one more checkpoint of the same families and recipes."]
    for one in found:
        ladder = one.checked.ladder
        rungs = ", ".join(map(ladder.name, ladder.rungs))
        lines += ["", f"{ladder.title}, from {rungs}", f"  rows: {one.source}"]
        lines += [f"  {text}" for text in _tested(one.checked)]
        if every:
            lines += [f"    {text}" for text in _left_out(one.checked.left_out)]
        lines += [f"  {a.model}: {_said(a)}" for a in one.answers]
    if not found:
        lines += [
            "",
            "no expensive benchmark has a rung among these results: run those that benchmarks.yaml names (ladder)",
        ]
    return "\n".join(lines) + "\n"


def _tested(checked: TestedLadder) -> Iterator[str]:
    if checked.left_out:
        baselines = [f"the mean {checked.error('mean'):.2f}"]
        if (top1 := checked.error("top1")) is not None:
            baselines.append(f"{checked.ladder.name(checked.ladder.top1)} alone {top1:.2f}")
        yield (
            f"{len(checked.rows)} rows, {len(checked.left_out)} of them left out in turn: error "
            f"{checked.error('ladder'):.2f} points ({', '.join(baselines)}), "
            f"{checked.covered} of {len(checked.left_out)} inside their interval"
        )
    if checked.reason:
        yield f"cannot tell: {checked.reason}"


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[str]:
    for one in left_out:
        inside = "" if one.ladder.covers(one.true) else ", outside"
        yield f"{one.row.model} ({one.row.family}): {one.true:.2f}, predicted {_words(one.ladder)}{inside}"


def _words(p: Predicted) -> str:
    return f"{p.value:.2f}, {p.low:.2f} to {p.high:.2f}"


def _said(found: LadderAnswer) -> str:
    if found.predicted is None:
        return f"cannot tell: {found.reason}"
    return _words(found.predicted)


def as_json(found: Sequence[LadderAnswers], *, every: bool = False) -> str:
    """Return the ladders for programs."""
    value = {"note": NOTE, "ladders": [_plain(one, every=every) for one in found]}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _plain(one: LadderAnswers, *, every: bool) -> dict[str, Any]:
    checked = one.checked
    ladder = checked.ladder
    return {
        "title": ladder.title,
        "target": ladder.target,
        "rungs": list(ladder.rungs),
        "top1": ladder.top1,
        "source": one.source,
        "rows": len(checked.rows),
        "left_out": len(checked.left_out),
        "covered": checked.covered,
        "error": checked.error("ladder"),
        "error_of_mean": checked.error("mean"),
        "error_of_top1": checked.error("top1"),
        "cannot_tell": checked.reason,
        "answers": [
            {"model": a.model, "family": a.family, "cannot_tell": a.reason, **_ends(a.predicted)}
            for a in one.answers
        ],
        **(
            {
                "each": [
                    {"model": o.row.model, "true": o.true, **_ends(o.ladder)}
                    for o in checked.left_out
                ]
            }
            if every
            else {}
        ),
    }


def _ends(found: Predicted | None) -> dict[str, float | None]:
    if found is None:
        return {"value": None, "low": None, "high": None}
    return {"value": found.value, "low": found.low, "high": found.high}
