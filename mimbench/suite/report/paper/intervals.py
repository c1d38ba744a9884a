"""The interval plots of all benchmarks on paper, a page or a column wide."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.paper.sheet import (
    INK,
    LINE,
    PAGE,
    PUBLISHED,
    QUIET,
    SMALL_SIZE,
    bare,
    blank,
    key,
    legend,
    marker,
    say,
    shortened,
    tone,
)
from mimbench.suite.report.scales import tick_text
from mimbench.suite.report.strips import Dot, Lane, Strip

LANE, AXIS, ABOVE = 0.12, 0.28, 0.17
"""Inches: of a lane, of an axis with the room below it, of a name above a strip."""
NAMES, VALUES, TALLEST = 1.75, 1.2, 9.2
"""Inches beside the strips of a page, and the most that a page has from top to bottom."""


def overview_figures(
    strips: Sequence[Strip], looks: Sequence[RowLook], width: float
) -> list[Figure]:
    """Return the interval plots of all benchmarks, in as few figures as fit on pages, alike in height."""
    above = 0.0 if width >= PAGE else ABOVE
    heights = [_height(strip) + above for strip in strips]
    room = TALLEST - LINE * -(-(len(looks) + 1) // (5 if width >= PAGE else 2)) - 0.12
    goal = sum(heights) / max(1, math.ceil(sum(heights) / room))
    parts: list[list[Strip]] = [[]]
    filled = 0.0
    for strip, height in zip(strips, heights, strict=True):
        if parts[-1] and filled + height / 2 > goal * len(parts):
            parts.append([])
        parts[-1].append(strip)
        filled += height
    return [_overview(part, looks, width) for part in parts]


def _height(strip: Strip) -> float:
    return AXIS + LANE * max(2, len(strip.lanes))


def _overview(strips: Sequence[Strip], looks: Sequence[RowLook], width: float) -> Figure:
    """Return one figure: names stand beside the strips of a page, above those of a column."""
    wide = width >= PAGE
    published = any(lane.kind == "published" for strip in strips for lane in strip.lanes)
    handles, columns = key(looks, published=published), 5 if wide else 2
    head = LINE * -(-len(handles) // columns) + 0.12
    heights = [_height(strip) + (0.0 if wide else ABOVE) for strip in strips]
    total = sum(heights) + head
    figure = blank(width, total)
    left, right = (NAMES, VALUES) if wide else (0.1, 0.1)
    top = total - head
    for strip, height in zip(strips, heights, strict=True):
        upper = top - (0.0 if wide else ABOVE)
        deep = LANE * len(strip.lanes)
        box = (left / width, (upper - deep) / total, (width - left - right) / width, deep / total)
        _strip(figure.add_axes(box), strip, {look.index: look for look in looks})
        _name(figure, strip, (0.05, upper), wide=wide, size=(width, total))
        if wide:
            _values(figure, strip, (width - right + 0.12, upper), (width, total))
        top -= height
    legend(figure, handles, columns=columns)
    return figure


def _name(
    figure: Figure,
    strip: Strip,
    place: tuple[float, float],
    *,
    wide: bool,
    size: tuple[float, float],
) -> None:
    x, y = place[0] / size[0], place[1] / size[1]
    way = "lower is better" if strip.lower else "higher is better"
    room = NAMES - 0.2 if wide else size[0] - 0.2
    title = figure.text(x, y, say(strip.title), va="top" if wide else "bottom", color=INK)
    if wide:
        unit = figure.text(x, y - 0.13 / size[1], say(f"{strip.unit}, {way}"), va="top",
                           size=SMALL_SIZE, color=QUIET)  # fmt: skip
        shortened(unit, room, figure)
    else:
        title.set_text(f"{say(strip.title, 40)}{'  (lower is better)' if strip.lower else ''}")
    shortened(title, room, figure)


def _values(
    figure: Figure, strip: Strip, place: tuple[float, float], size: tuple[float, float]
) -> None:
    for i, lane in enumerate(strip.lanes):
        y = (place[1] - LANE * (i + 0.5)) / size[1]
        half = f" ±{lane.dots[0].half:.2f}" if lane.dots and lane.dots[0].half is not None else ""
        words = f"{lane.dots[0].value:.2f}{half}" if lane.dots else lane.words
        words = lane.words if lane.kind == "published" else words
        said = figure.text(
            place[0] / size[0], y, say(words), va="center", size=SMALL_SIZE, color=INK
        )
        shortened(said, size[0] - place[0] - 0.03, figure)


def _strip(axes: Axes, strip: Strip, looks: dict[int, RowLook]) -> None:
    scale = strip.scale()
    count = len(strip.lanes)
    axes.set_ylim(count - 0.5, -0.5)
    bare(axes)
    if scale is None:
        axes.set_xticks([])
        return
    axes.set_xlim(scale.low, scale.high)
    if scale.flipped:
        axes.invert_xaxis()
    ticks = scale.ticks()
    axes.set_xticks(ticks, [tick_text(t) for t in ticks])
    for y, lane in enumerate(strip.lanes):
        for dot in sorted(lane.dots, key=lambda dot: dot.matched):
            _dot(axes, dot, y, _look(lane, looks))


def _look(lane: Lane, looks: dict[int, RowLook]) -> RowLook | None:
    return None if lane.kind == "published" else looks[lane.index]


def _dot(axes: Axes, dot: Dot, y: int, look: RowLook | None) -> None:
    if look is None:
        axes.plot([dot.value], [y], **PUBLISHED, markerfacecolor=INK if dot.matched else "white")
        return
    if dot.recipe:
        axes.plot(dot.recipe, [y, y], color=tone(look), alpha=0.25, linewidth=5, marker="",
                  solid_capstyle="butt")  # fmt: skip
    if dot.half is not None:
        axes.errorbar([dot.value], [y], xerr=[dot.half], color=tone(look), linewidth=1.1,
                      capsize=1.8, capthick=0.8)  # fmt: skip
    axes.plot(dot.each, [y - 0.36] * len(dot.each), linestyle="none", marker="|", markersize=3,
              color=tone(look))  # fmt: skip
    axes.plot([dot.value], [y], **marker(look))
