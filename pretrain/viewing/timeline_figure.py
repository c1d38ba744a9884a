"""A timeline for people: every figure of a run's states against images and seconds, and as a table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mimbench.suite.report.colours import RowLook, light_variables
from mimbench.suite.report.curves import HEIGHT, WIDTH, Line, Series, chart
from mimbench.suite.report.markup import text

STYLE = (
    ".curve{fill:none;stroke-width:1.8}.axis{stroke:#999;fill:none}.grid-line{stroke:#ddd}"
    "text{font:11px sans-serif;fill:#444}"
)
GAP = 24
MASKS = {
    "clumping": "masks: clumping",
    "spatial_entropy": "masks: spatial entropy",
    "hardest_quarter_hidden": "masks: hardest quarter hidden",
}
"""What states say of the masks of their epoch, and what it is called."""


def drawing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return every figure against images (left) and against seconds (right) as one picture."""
    names = names_of(rows)
    panels = []
    for top, name in enumerate(["loss", *names]):
        for left, axis in enumerate(("images", "seconds")):
            line = line_of(rows, name, axis)
            if len(line) < 2:
                continue
            found = re.search(
                r"<svg (.*)</svg>",
                chart(name, [Series(RowLook(name, 0), line)], across=axis),
                re.DOTALL,
            )
            assert found is not None
            x, y = left * (WIDTH + GAP), top * (HEIGHT + GAP)
            panels.append(
                f'<text x="{x}" y="{y + 12}">{text(name)}</text>'
                f'<svg x="{x}" y="{y + 16}" width="{WIDTH}" height="{HEIGHT}" {found.group(1)}</svg>'
            )
    height = (len(names) + 1) * (HEIGHT + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + GAP} {height}">'
        f"<style>{light_variables()}{STYLE}</style>{''.join(panels)}</svg>\n"
    )


def line_of(rows: Sequence[Mapping[str, Any]], name: str, axis: str) -> Line:
    """Return the points of one figure."""
    values = [(row[axis], row["loss"] if name == "loss" else figure(row, name)) for row in rows]
    return [(float(x), float(y)) for x, y in values if y is not None]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the states as a Markdown table."""
    names = names_of(rows)
    lines = [f"| images | seconds | loss | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        loss = "-" if row["loss"] is None else f"{row['loss']:.4f}"
        values = [figure(row, name) for name in names]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {row['images']} | {row['seconds']:.0f} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is known of any state: scores, then what its masks were like."""
    scores = dict.fromkeys(name for row in rows for name in row["scores"])
    return [
        *scores,
        *(name for name in MASKS.values() if any(figure(row, name) is not None for row in rows)),
    ]


def figure(row: Mapping[str, Any], name: str) -> float | None:
    """Return one figure of a state."""
    for key, called in MASKS.items():
        if called == name:
            return (row.get("masks") or {}).get(key)
    return row["scores"].get(name)
