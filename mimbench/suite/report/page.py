"""Put the report together: the answer, what it cost, what is worrying, then everything in detail."""

import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest
from mimbench.suite.report.classes import classes
from mimbench.suite.report.colours import variables
from mimbench.suite.report.computed import masks, neighbours
from mimbench.suite.report.confusions import confusions
from mimbench.suite.report.costs import costs
from mimbench.suite.report.gallery import pictures
from mimbench.suite.report.gathered import Gathered, gather
from mimbench.suite.report.learning import curves, layers, pretraining
from mimbench.suite.report.markup import section, text
from mimbench.suite.report.origins import provenance_of, repeat
from mimbench.suite.report.overview import overview
from mimbench.suite.report.result_table import html_table
from mimbench.suite.report.worries import show_worries, worries_of

PARTS: Mapping[str, tuple[str, Callable[[Gathered], list[str]]]] = {
    "overview": ("Against random weights and published rows", lambda g: overview(g.table)),
    "costs": ("What it cost", costs),
    "worries": ("What is worrying", lambda g: show_worries(worries_of(g.table, g.runs))),
    "table": ("Table", lambda g: [html_table(g.table)]),
    "curves": ("Curves", curves),
    "pretraining": ("Pretraining", pretraining),
    "layers": ("By layer and severity", layers),
    "classes": ("Per class", classes),
    "confusions": ("What the worst classes were taken for", confusions),
    "masks": ("Masks and predicted loss", masks),
    "neighbours": ("Nearest neighbours", neighbours),
    "pictures": ("Pictures", pictures),
    "provenance": ("Provenance", lambda g: [provenance_of(g.runs)]),
    "repeat": ("Repeat", lambda g: [repeat(g.out, g.runs)]),
}
COMPUTED = ("masks", "neighbours")
"""Parts that need the checkpoints and the data."""


def make_report(
    out: Path, manifest: Manifest, *, choice: Mapping[str, str] | None = None, compute: bool = True
) -> str:
    """Return the report of an output folder as one HTML page.

    Args:
        out: What `run` wrote.
        manifest: Titles and published rows.
        choice: Row name -> published row to compare with.
        compute: Also make pictures that need the checkpoints and the data (nearest neighbours).
    """
    gathered = gather(out, manifest, choice)
    body = {
        anchor: section(anchor, title, make(gathered))
        for anchor, (title, make) in PARTS.items()
        if compute or anchor not in COMPUTED
    }
    names = ", ".join(look.label for look in gathered.looks.values())
    return page(names, "How well does it transfer?", body)


def page(names: str, heading: str, body: Mapping[str, str]) -> str:
    """Return a page that needs nothing else.

    Args:
        names: What it is about.
        heading: Its title.
        body: Anchor -> section, or '' where there is nothing to show.
    """
    links = "".join(
        f'<a href="#{a}">{text(PARTS[a][0])}</a>' for a, content in body.items() if content
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(names)} · mimbench</title><style>{style()}</style></head><body>\n"
        f'<header><h1>{text(heading)}</h1><p class="soft">{text(names)}</p><nav>{links}</nav></header>\n'
        f"<main>{chr(10).join(body.values())}</main>\n</body></html>\n"
    )


def style() -> str:
    """Return the style sheet, the rows' colours with it."""
    rules = files("mimbench.suite.report").joinpath("style.css").read_text(encoding="utf-8")
    return variables() + re.sub(r"\s*\n\s*", "\n", rules)
