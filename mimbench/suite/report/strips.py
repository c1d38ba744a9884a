"""Interval plots: a strip for each benchmark with one axis of its own, a lane for each value in it.

`Strip` is what is shown; `draw` writes it as HTML with SVG inside, `paper.py` draws the same for a page.
The plot has no size of its own: places are percentages, so text keeps its size on every screen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mimbench.suite.report.colours import DIAMOND, colour, symbol
from mimbench.suite.report.markup import text
from mimbench.suite.report.scales import Scale, tick_text

LANE, AXIS = 20, 24
"""Pixels of height."""
SIGNS = {"better": "▲", "worse": "▼", "cannot tell": "≈"}
Verdict = Literal["better", "worse", "cannot tell", ""]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One value with its interval."""

    label: str
    value: float
    half: float | None = None
    """Half width of the 95 % interval."""
    each: Sequence[float] = ()
    """Of every seed, where there are several."""
    recipe: tuple[float, float] | None = None
    """Smallest and largest value over neighbouring settings of the recipe."""
    matched: bool = False
    """A published value that a row should reproduce."""


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line of a strip: a row of the table, or all published rows."""

    label: str
    kind: Literal["row", "twin", "published"]
    index: int = 0
    """Number of the row: its colour and symbol."""
    dots: Sequence[Dot] = ()
    words: str = ""
    """What stands beside the lane: the value in words, or why there is none."""
    verdict: Verdict = ""
    """Against the random twin."""
    gap: str = ""
    """Value minus the random twin's."""


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One benchmark: its lanes share an axis."""

    title: str
    unit: str
    """What is measured."""
    lower: bool
    """The smaller value is the better one: the axis is turned round, so that right is better."""
    lanes: Sequence[Lane]

    def scale(self) -> Scale | None:
        """Return the axis; None where there is no value."""
        ends = [
            end
            for lane in self.lanes
            for dot in lane.dots
            for end in (
                dot.value - (dot.half or 0),
                dot.value + (dot.half or 0),
                *dot.each,
                *(dot.recipe or ()),
            )
        ]
        return Scale.around(ends, flipped=self.lower) if ends else None

    @property
    def direction(self) -> str:
        """Return which way is better, in words."""
        return "lower is better, axis reversed" if self.lower else "higher is better"

    def spoken(self) -> str:
        """Return the strip in words, for those who do not see it."""
        return "; ".join(
            f"{lane.label}: {lane.words}" + (f", {lane.verdict}" if lane.verdict else "")
            for lane in self.lanes
        )


def draw(strip: Strip) -> str:
    """Return a strip as HTML: name, plot, values."""
    values = "".join(f"<li>{_words(lane)}</li>" for lane in strip.lanes)
    return (
        f'<div class="strip"><div class="strip-name"><b>{text(strip.title)}</b>'
        f"<span>{text(strip.unit)} · {text(strip.direction)}</span></div>"
        f'{plot(strip)}<ul class="strip-values">{values}</ul></div>'
    )


def _words(lane: Lane) -> str:
    sign = SIGNS.get(lane.verdict, "")
    mark = f'<span class="sign" title="{text(lane.verdict)}">{sign} {text(lane.gap)}</span>'
    return f'<span title="{text(lane.label)}">{text(lane.words)}</span>{mark}'


def plot(strip: Strip) -> str:
    """Return the lanes and their axis as SVG of any width."""
    height = LANE * len(strip.lanes) + AXIS
    name = f"{strip.title}, {strip.unit}, {strip.direction}"
    scale = strip.scale()
    inside = "" if scale is None else _axis(scale, len(strip.lanes)) + _lanes(strip, scale)
    return (
        f'<svg class="strip-plot" width="100%" height="{height}" role="img" '
        f'aria-label="{text(name)}: {text(strip.spoken())}">{inside}</svg>'
    )


def _axis(scale: Scale, lanes: int) -> str:
    base = LANE * lanes + 2
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{base}" y2="{base}"/>']
    for tick in scale.ticks():
        x = percent(scale, tick)
        parts.append(
            f'<line class="grid-line" x1="{x}" x2="{x}" y1="0" y2="{base}"/>'
            f'<text x="{x}" y="{base + 15}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    return "".join(parts)


def _lanes(strip: Strip, scale: Scale) -> str:
    parts = []
    for i, lane in enumerate(strip.lanes):
        y = LANE * i + LANE // 2
        # those that matter lie on top
        for dot in sorted(lane.dots, key=lambda dot: dot.matched):
            faint = lane.kind == "published" and not dot.matched
            parts.append(_dot(dot, lane, scale, y, faint=faint))
    return "".join(parts)


def _dot(dot: Dot, lane: Lane, scale: Scale, y: int, *, faint: bool) -> str:
    tone = tone_of(lane)
    half = f" ±{dot.half:.2f}" if dot.half is not None else ""
    weak = ' opacity="0.6"' if faint else ""
    parts = [f'<g style="--tone:{tone}"{weak}>']
    parts.append(f"<title>{text(dot.label)}: {dot.value:.2f}{half}</title>")
    if dot.recipe:
        band = [percent(scale, end) for end in dot.recipe]
        parts.append(f'<line class="recipe" x1="{band[0]}" x2="{band[1]}" y1="{y}" y2="{y}"/>')
    if dot.half is not None:
        ends = [percent(scale, dot.value - dot.half), percent(scale, dot.value + dot.half)]
        parts.append(f'<line class="whisker" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>')
        parts += [
            f'<line class="whisker" x1="{x}" x2="{x}" y1="{y - 4}" y2="{y + 4}"/>' for x in ends
        ]
    parts += [
        f'<line class="seed" x1="{(x := percent(scale, value))}" x2="{x}" y1="{y - 8}" y2="{y - 5}"/>'
        for value in dot.each
    ]
    hollow = ' class="hollow"' if lane.kind == "twin" or faint else ' class="full"'
    parts.append(
        f'<svg x="{percent(scale, dot.value)}" y="{y}" overflow="visible">'
        f'<path{hollow} d="{outline(lane)}"/></svg></g>'
    )
    return "".join(parts)


def percent(scale: Scale, value: float) -> str:
    """Return a place on the axis as SVG reads it."""
    return f"{100 * scale.place(value):.2f}%"


def tone_of(lane: Lane) -> str:
    """Return a lane's colour."""
    special = {"twin": "var(--twin)", "published": "var(--ink)"}
    return special.get(lane.kind) or colour(lane.index)


def outline(lane: Lane) -> str:
    """Return a lane's symbol."""
    return DIAMOND if lane.kind == "published" else symbol(lane.index)


def key(lanes: Sequence[Lane]) -> str:
    """Return what the symbols mean."""
    entries = []
    for lane in lanes:
        hollow = "hollow" if lane.kind == "twin" else "full"
        entries.append(
            f'<span class="key" style="--tone:{tone_of(lane)}"><svg width="14" height="14" '
            f'viewBox="-7 -7 14 14" aria-hidden="true"><path class="{hollow}" d="{outline(lane)}"/>'
            f"</svg>{text(lane.label)}</span>"
        )
    signs = "".join(
        f'<span class="key">{sign} {text(words)}</span>' for words, sign in SIGNS.items()
    )
    return f'<p class="legend">{"".join(entries)}{signs}</p>'
