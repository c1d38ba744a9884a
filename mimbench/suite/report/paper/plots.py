"""Lines and scores by class on paper."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mimbench.suite.report.classes import SHOWN, ClassScores
from mimbench.suite.report.curves import Series, axes_of, thin, unit_of
from mimbench.suite.report.paper.sheet import (
    COLUMN,
    INK,
    LINE,
    PAGE,
    QUIET,
    SMALL_SIZE,
    bare,
    blank,
    dash,
    key,
    legend,
    marker,
    say,
    shortened,
    tone,
)
from mimbench.suite.report.scales import Scale, tick_text


def lines_figure(
    charts: Sequence[tuple[str, Sequence[Series], str]],
    *,
    family: str = "",
    unit: str | None = None,
) -> Figure:
    """Return line charts, at most three beside each other.

    Args:
        charts: Title, lines, and what they run across.
        family: What all charts show: they share the vertical axis then.
        unit: Of the values; None to go by the titles.
    """
    columns = min(3, len(charts))
    rows = -(-len(charts) // columns)
    width = COLUMN if columns == 1 else PAGE
    every = [one for _, series, _ in charts for one in series]
    looks = [look for _, look in sorted({one.look.index: one.look for one in every}.items())]
    keys = 2 if columns == 1 else 5
    head = LINE * -(-len(looks) // keys) + 0.12 + (LINE if family else 0.0)
    total = head + 1.75 * rows
    figure = blank(width, total)
    grid = figure.add_gridspec(
        rows, columns, left=0.42 / width, right=1 - 0.08 / width, top=1 - (head + 0.2) / total,
        bottom=0.4 / total, wspace=0.3, hspace=0.55,
    )  # fmt: skip
    for i, (title, series, across) in enumerate(charts):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        across_axis, up = axes_of(series)
        _lines(axes, series, across_axis, axes_of(every)[1] if family else up)
        measured = unit_of(title) if unit is None else unit
        words = title.removesuffix(f", by {across}").removeprefix(f"{family}:").strip()
        title = axes.set_title(
            say(f"{words}, {measured}" if measured else words), loc="left", color=INK
        )
        shortened(title, width / columns - 0.5, figure)
        axes.set_xlabel(say(across), size=SMALL_SIZE, color=QUIET, labelpad=1, loc="right")
    if family:
        figure.text(0.05 / width, 1 - (head - 0.05) / total, say(family), va="bottom", color=INK)
    handles = [
        Line2D([], [], color=tone(look), linestyle=dash(look), label=say(look.label, 34))
        for look in looks
    ]
    legend(figure, handles, columns=keys)
    return figure


def _lines(axes: Axes, series: Sequence[Series], across: Scale, up: Scale) -> None:
    for one in series:
        points = thin(one.line)
        axes.plot(
            [x for x, _ in points], [y for _, y in points],
            color=tone(one.look), linestyle=dash(one.look),
        )  # fmt: skip
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(up.low, up.high)
    for axis, scale in ((axes.xaxis, across), (axes.yaxis, up)):
        ticks = scale.ticks(4)
        axis.set_ticks(ticks, [tick_text(t) for t in ticks])
    axes.grid(visible=False, axis="x")
    axes.tick_params(length=2, pad=2)


def classes_figure(scores: ClassScores) -> Figure:
    """Return the scores by class in a column: all classes, or those that gain and lose most."""
    order = scores.order()
    if len(order) > 2 * SHOWN + 1:
        order = [*order[:SHOWN], "", *order[-SHOWN:]]
    head = LINE * -(-len(scores.looks) // 2) + 0.12
    total = head + 0.2 + 0.145 * len(order) + 0.3
    figure = blank(COLUMN, total)
    axes = figure.add_axes(
        (1.0 / COLUMN, 0.26 / total, (COLUMN - 1.5) / COLUMN, 0.145 * len(order) / total)
    )
    scale = Scale.around([v for found in scores.values.values() for v in found.values()])
    for y, name in enumerate(order):
        known = {look: found[name] for look, found in scores.values.items() if name in found}
        if known:
            axes.plot(
                [min(known.values()), max(known.values())], [y, y], color=QUIET, linewidth=0.6
            )
        for look, value in reversed(known.items()):
            axes.plot([value], [y], **marker(look))
        gap = scores.gap(name) if name else None
        if gap is not None:
            axes.annotate(f"{gap:+.1f}", (1.03, y), xycoords=("axes fraction", "data"), va="center",
                          size=SMALL_SIZE, color=INK)  # fmt: skip
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlim(scale.low, scale.high)
    bare(axes)
    axes.tick_params(axis="y", labelleft=True, pad=3, labelcolor=INK)
    axes.set_yticks(range(len(order)), [say(name, 16) if name else "…" for name in order])
    ticks = scale.ticks(4)
    axes.set_xticks(ticks, [tick_text(t) for t in ticks])
    head = figure.text(0.05 / COLUMN, 1 - head / total, say(scores.title), va="top", color=INK)
    shortened(head, COLUMN - 0.1, figure)
    legend(figure, key(scores.looks, published=False), columns=2)
    return figure
