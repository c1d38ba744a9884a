"""A model card that keeps its owner's words: one block of the text and our results of `model-index` are ours."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from mimbench.system.config import StrictLoader
from mimbench.system.errors import UserError, printable
from mimbench.system.yaml_limits import check_cost

NEWLINE = "\n"
BEGIN, END = "<!-- mimbench: begin -->", "<!-- mimbench: end -->"
INDEX = "model-index"
MARK = "mimbench_protocol"
"""The argument of a metric that says that we wrote it."""
FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
OUR_KEY = re.compile(rf"""["']?{INDEX}["']?[ \t]*:""")
SPECIAL = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:@])")


class Card(NamedTuple):
    """A card in its two parts."""

    front: str
    """The lines between the dashes; '' where there are none."""
    body: str


def split_card(text: str) -> Card:
    """Return a card's front matter and body."""
    if not text.startswith("---"):
        return Card("", text)
    found = FRONT.match(text)
    if not found:
        raise UserError("its front matter begins with --- and does not end with such a line")
    return Card(found[1], text[found.end() :])


def merge_card(text: str, name: str, results: Sequence[Mapping[str, Any]], block: str) -> str:
    """Return a card with our results and our block in it, everything else as it was.

    Args:
        text: The card as it is, '' for none.
        name: What the model is called if the card does not say.
        results: Ours, for `model-index`.
        block: Ours, in Markdown.
    """
    card = split_card(text)
    before = parse_front(card.front)
    index = merge_index(before.get(INDEX), name, results)
    front = replace_index(card.front, index)
    after = parse_front(front)
    same = {**before, INDEX: index} if index else {k: v for k, v in before.items() if k != INDEX}
    if after != same:
        raise UserError(f"its {INDEX} cannot be replaced safely; write it as a block of its own")
    body = replace_block(card.body or f"# {markdown_text(name)}\n", block)
    return f"---\n{front}---\n{body}" if front else body


def parse_front(front: str) -> dict[str, Any]:
    """Return front matter as a mapping."""
    try:
        check_cost(front, StrictLoader)
        value = yaml.load(front, Loader=StrictLoader) if front.strip() else {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"its front matter is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise UserError("its front matter should hold a mapping")
    return value


def merge_index(old: Any, name: str, ours: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `model-index` with our results in the place of earlier ones of ours.

    Args:
        old: What the card has there.
        name: What the model is called if the card does not say.
        ours: Our results.
    """
    entries: list[dict[str, Any]] = []
    for entry in [] if old is None else old if isinstance(old, list) else [old]:
        if not isinstance(entry, dict) or not isinstance(entry.get("results", []), list):
            raise UserError(f"its {INDEX} should be a list of models with results")
        entries.append({**entry, "results": [r for r in entry.get("results", []) if not _ours(r)]})
    if ours and not entries:
        entries.append({"name": printable(name), "results": []})
    if ours:
        entries[0] = {**entries[0], "results": [*entries[0]["results"], *map(dict, ours)]}
    return [entry for entry in entries if entry["results"]]


def _ours(result: Any) -> bool:
    metrics = result.get("metrics") if isinstance(result, dict) else None
    arguments = [m.get("args") for m in metrics or [] if isinstance(m, dict)]
    return any(isinstance(given, dict) and MARK in given for given in arguments)


def replace_index(front: str, index: Sequence[Mapping[str, Any]]) -> str:
    """Return front matter with another `model-index`, every other line untouched."""
    lines = front.splitlines(keepends=True)
    start = next((i for i, line in enumerate(lines) if OUR_KEY.match(line)), len(lines))
    end = min(start + 1, len(lines))
    # a list may stand at the margin: its dashes belong to the key above
    while end < len(lines) and (lines[end][:1] in " \t-\n" or not lines[end].strip()):
        end += 1
    new = yaml.safe_dump({INDEX: list(index)}, sort_keys=False, width=1000) if index else ""
    return "".join([*lines[:start], new, *lines[end:]])


def replace_block(body: str, block: str) -> str:
    """Return a body with our block in the place of an earlier one, at the end if there was none."""
    ours = f"{BEGIN}\n{block.strip()}\n{END}"
    count = body.count(BEGIN)
    if count != body.count(END) or count > 1:
        raise UserError(f"it should hold {BEGIN} and {END} once each, or not at all")
    if not count:
        return f"{body.rstrip(NEWLINE)}\n\n{ours}\n"
    head, _, rest = body.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not closed:
        raise UserError(f"{END} stands before {BEGIN}")
    return f"{head}{ours}{tail}"


def markdown_text(text: str) -> str:
    """Return text as Markdown that shows just these characters."""
    return SPECIAL.sub(r"\\\1", html.escape(printable(text), quote=False))
