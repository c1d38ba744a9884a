"""Which published row a checkpoint should reproduce: one that everything known agrees with, or none.

A difference from the wrong row is a wrong number. What a file is follows from its format and its name;
where they leave a choice, or contradict each other or the row, nothing is subtracted and the reason is
given. The user's word (`--reference NAME=METHOD EPOCHS`) comes before both.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mimbench.benchmarks.manifest import Reference
from mimbench.results.record import Result
from mimbench.tables.rows import Column

METHODS = {
    "hpm": ("HPM",),
    "automae": ("AutoMAE",),
    "mae": ("MAE", "HPM", "AutoMAE"),
    "dino": ("DINO", "iBOT", "AttMask-High", "AttMask-Hint", "HPM"),
    "ibot": ("iBOT", "AttMask-High", "AttMask-Hint"),
}
"""Format -> methods whose published files are read as it: a bare backbone does not say more."""
WORDS: dict[str, frozenset[str]] = {
    "hpm": frozenset({"HPM"}),
    "mae": frozenset({"MAE"}),
    "automae": frozenset({"AutoMAE"}),
    "dino": frozenset({"DINO"}),
    "ibot": frozenset({"iBOT"}),
    "attmask": frozenset({"AttMask-High", "AttMask-Hint"}),
    "high": frozenset({"AttMask-High"}),
    "hint": frozenset({"AttMask-Hint"}),
}
"""What a word of a checkpoint's name says about its method."""
ELSE = frozenset(
    {
        "beit",
        "colormae",
        "crossmae",
        "data2vec",
        "deit",
        "dinov2",
        "dinov3",
        "eva",
        "ijepa",
        "moco",
        "mocov3",
        "rand",
        "random",
        "semmae",
        "simmim",
        "supervised",
    }
)
"""Words that name another method than any of `METHODS`."""
EPOCHS = re.compile(r"(\d+) ?(?:ep|epoch|epochs|e)(?![a-z])")


class Match(NamedTuple):
    """The row, or why there is none; neither where nothing is published at all."""

    reference: Reference | None = None
    reason: str = ""


def match(
    result: Result, column: Column, references: Sequence[Reference], choice: str = ""
) -> Match:
    """Return the one published row that the checkpoint should reproduce.

    Args:
        result: A finished run under the column's protocol.
        column: One whose recipe is the published one.
        references: All published rows.
        choice: The user's `method epochs`.
    """
    model = result.weights.get("model")
    rows = [
        r
        for r in references
        if (r.protocol, r.metric, r.model) == (column.benchmark, column.metric, model)
    ]
    if not rows:
        return Match()
    if unpublished := str(result.notes.get("unpublished", "")):
        return Match(reason=unpublished)
    if choice:
        return _chosen(rows, choice)
    method, reason = method_of(result.weights["format"], result.weights["name"])
    if not method:
        return Match(reason=reason)
    rows = [r for r in rows if r.method == method]
    return _by_epochs(rows, result.weights["name"]) if rows else Match()


def _chosen(rows: Sequence[Reference], choice: str) -> Match:
    method, _, epochs = choice.rpartition(" ") if choice[-1].isdigit() else (choice, "", "")
    rows = [r for r in rows if r.method == method and (not epochs or r.epochs == int(epochs))]
    return _single(rows, f"'{choice}' is not one row")


def method_of(kind: str, name: str) -> tuple[str, str]:
    """Return the method of a checkpoint, or '' and why it is unclear.

    Args:
        kind: The format that it was read as.
        name: What it is called.
    """
    possible = set(METHODS.get(kind, ()))
    if not possible:
        return "", ""
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    if other := sorted(ELSE & {*words, *(w.rstrip("0123456789") for w in words)}):
        return "", f"the name says {other[0]}, the file is read as {kind}"
    named = [WORDS[word] for word in words if word in WORDS]
    for methods in named:
        possible &= methods
    if not possible:
        return "", f"the name contradicts the format {kind}"
    if len(possible) > 1:
        listed = ", ".join(m for m in METHODS[kind] if m in possible)
        return "", f"the file does not say which it is of {listed}; name it or pass --reference"
    return possible.pop(), ""


def _by_epochs(rows: Sequence[Reference], name: str) -> Match:
    """Return the row whose pretraining length the name states; unstated lengths only among themselves."""
    numbers = {int(n) for n in re.findall(r"\d+", name)}
    exact = [r for r in rows if r.epochs is not None and {r.epochs, r.epochs - 1} & numbers]
    if exact:
        return _single(exact, "the name fits rows of several lengths of pretraining")
    said = sorted(int(n) for n in EPOCHS.findall(re.sub(r"[^a-z0-9]", " ", name.lower())))
    known = ", ".join(str(r.epochs) for r in rows if r.epochs is not None)
    if said:
        return Match(reason=f"no row is published for {said[-1]} epochs (published: {known})")
    if known:
        return Match(
            reason=f"the name does not say how long it was pretrained (published: {known} epochs)"
        )
    return _single(rows, "several rows fit")


def _single(rows: Sequence[Reference], reason: str) -> Match:
    """Return the row if all are of one method and length: the first source's."""
    one = len({(r.method, r.epochs) for r in rows}) == 1
    return Match(reference=rows[0]) if one else Match(reason=reason)
