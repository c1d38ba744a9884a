"""Sheets of a paper: widths, type, rows' looks, and how a figure becomes two files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text

from mimbench.suite.report.colours import (
    DASHES,
    DIAMOND_MARKER,
    LIGHT,
    MARKERS,
    TWIN_LIGHT,
    RowLook,
)
from mimbench.system.errors import printable
from mimbench.system.files import atomic_path

COLUMN, PAGE = 3.3, 6.9
"""Inches: a column and the text of a page, as ACM, IEEE, CVPR and Springer set them within a hair."""
INK, QUIET, RULE = "#1d1f21", "#5f6469", "#d8d8d2"
SIZE, SMALL_SIZE = 8.0, 6.5
"""Points."""
LINE = 0.17
"""Inches of a line of the key."""
STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "mimbench",
    "text.usetex": False,
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.linewidth": 0.6,
    "axes.edgecolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.labelsize": SMALL_SIZE,
    "ytick.labelsize": SMALL_SIZE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.fontsize": SMALL_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Set type and lines while figures are drawn and written."""
    with mpl.rc_context(STYLE):
        yield


def blank(width: float, height: float) -> Figure:
    """Return an empty figure, inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def say(name: object, most: int = 60) -> str:
    """Return a name as it can stand in a figure: one printable line, in letters that the font has."""
    known = _letters()
    return "".join(c if ord(c) in known else f"U+{ord(c):04X}" for c in printable(str(name), most))


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=["sans-serif"]))).get_charmap())


def write(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and PDF; the same figure gives the same files."""
    paths = []
    for kind, metadata in (("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        path = folder / f"{name}.{kind}"
        with atomic_path(path) as part:
            figure.savefig(part, format=kind, metadata=metadata)
        paths.append(path)
    return paths


def tone(look: RowLook) -> str:
    """Return a row's colour on paper."""
    return TWIN_LIGHT if look.twin else LIGHT[look.index % len(LIGHT)]


def marker(look: RowLook) -> dict[str, Any]:
    """Return how a row's symbol is drawn."""
    return {
        "marker": MARKERS[look.index % len(MARKERS)],
        "color": tone(look),
        "markerfacecolor": "white" if look.twin else tone(look),
        "markersize": 4.2,
        "markeredgewidth": 0.9,
    }


PUBLISHED: dict[str, Any] = {
    "marker": DIAMOND_MARKER, "color": INK, "markersize": 3.6, "linestyle": "none",
}  # fmt: skip


def dash(look: RowLook) -> Any:
    """Return a row's dashes."""
    broken = DASHES[look.index % len(DASHES)]
    return (0, tuple(0.6 * float(x) for x in broken.split())) if broken else "-"


def key(looks: Sequence[RowLook], *, published: bool) -> list[Line2D]:
    """Return what the symbols mean."""
    found = [
        Line2D([], [], linestyle="none", label=say(look.label, 34), **marker(look))
        for look in looks
    ]
    return [*found, *([Line2D([], [], label="published", **PUBLISHED)] if published else [])]


def legend(figure: Figure, handles: list[Line2D], *, columns: int = 4) -> None:
    """Put a key at the top left of a figure."""
    figure.legend(
        handles=handles, loc="upper left", ncols=min(columns, max(1, len(handles))),
        bbox_to_anchor=(0.0, 1.0), handletextpad=0.5, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip


def bare(axes: Axes) -> None:
    """Leave nothing but a horizontal axis with its grid."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="x", length=2, pad=2)


def shortened(words: Text, room: float, figure: Figure) -> None:
    """Cut words that are broader than so many inches."""
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    said = words.get_text()
    while len(said) > 4:
        broad = words.get_window_extent(renderer).width / figure.dpi
        if broad <= room:
            return
        # at least one letter less, most of what is too much at once
        said = said[: min(len(said) - 1, int(len(said) * room / broad))]
        words.set_text(said.rstrip() + "…")
