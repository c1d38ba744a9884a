"""Line charts: what benchmarks and pretraining logged, scores by layer, rows on common axes."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.suite.report.colours import RowLook, dashes
from mimbench.suite.report.markup import text
from mimbench.suite.report.scales import Scale, tick_text
from mimbench.training.curve import read_curve

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 340, 210, 46, 10, 36, 10
MOST_POINTS, MOST_FIGURES = 400, 3
SHOWN_FIRST = ("loss", "top1", "ap", "iou", "acc")
"""What a reader looks for in a curve, in this order."""
UNTOLD = re.compile(r"epoch|lr|.*(per_second|_time|images|gib|norm)")
"""What says how a run was carried out rather than what was learnt."""
PERCENT = re.compile(r"top-?[15]|\bm?ap\b|iou|acc|j&f|\bap", re.IGNORECASE)
Line = list[tuple[float, float]]
Place = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    look: RowLook
    line: Line


def read_curves(folder: Path) -> dict[str, Line]:
    """Return figure -> (step, value) points of a run's curve."""
    curves: dict[str, Line] = {}
    for entry in read_curve(folder):
        for name, value in entry.items():
            if name != "step" and is_number(value):
                curves.setdefault(name, []).append((float(entry["step"]), float(value)))
    return {name: line for name, line in curves.items() if len(line) > 1}


def is_number(value: object) -> bool:
    """Tell whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def names_of(curves: Sequence[Mapping[str, Line]]) -> list[str]:
    """Return the figures worth a chart, the most telling first."""
    names = dict.fromkeys(name for found in curves for name in found)
    return sorted((n for n in names if not UNTOLD.fullmatch(n)), key=_rank)[:MOST_FIGURES]


def charts(curves: Sequence[tuple[RowLook, Mapping[str, Line]]]) -> list[str]:
    """Return one chart for each figure; rows keep their colours."""
    return [
        chart(name, [Series(look, found[name]) for look, found in curves if name in found])
        for name in names_of([found for _, found in curves])
    ]


def _rank(name: str) -> tuple[int, int, str]:
    """Return what figures are sorted by: the whole loss before its parts, losses before scores."""
    kind = next((i for i, word in enumerate(SHOWN_FIRST) if word in name), len(SHOWN_FIRST))
    return kind, int(name not in ("loss", "total_loss")), name


def unit_of(name: str) -> str:
    """Return the unit of a figure, '' where it has none: scores are percentages, losses are not."""
    return "%" if PERCENT.search(name) and "loss" not in name else ""


def axes_of(series: Sequence[Series]) -> tuple[Scale, Scale]:
    """Return the common axes of some lines: across without room at the ends, up with a little."""
    points = [p for one in series for p in one.line]
    xs = [x for x, _ in points]
    low, high = min(xs), max(xs)
    across = Scale(low, high) if high > low else Scale(low - 0.5, high + 0.5)
    return across, Scale.around([y for _, y in points], margin=0.04)


def chart(
    name: str,
    series: Sequence[Series],
    *,
    across: str = "step",
    up: Scale | None = None,
    unit: str | None = None,
) -> str:
    """Return a line chart as SVG.

    Args:
        name: What is drawn.
        series: The lines.
        across: What the points are a function of.
        up: The vertical axis, where several charts share it.
        unit: Of the values; None to go by the name.
    """
    x_axis, own = axes_of(series)
    y_axis, unit = up or own, unit_of(name) if unit is None else unit
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def x_of(value: float) -> str:
        return f"{LEFT + (right - LEFT) * x_axis.place(value):.1f}"

    def y_of(value: float) -> str:
        return f"{TOP + (base - TOP) * (1 - y_axis.place(value)):.1f}"

    parts = [f'<path class="axis" d="M{LEFT},{TOP}V{base}H{right}"/>']
    parts += [
        f'<line class="grid-line" x1="{LEFT}" x2="{right}" y1="{y_of(t)}" y2="{y_of(t)}"/>'
        f'<text x="{LEFT - 5}" y="{float(y_of(t)) + 4:.1f}" text-anchor="end">{tick_text(t)}</text>'
        for t in y_axis.ticks(5)
    ]
    parts += [
        f'<text x="{x_of(t)}" y="{base + 15}" text-anchor="middle">{tick_text(t)}</text>'
        for t in x_axis.ticks(4)
    ]
    parts.append(
        f'<text x="{right}" y="{HEIGHT - 4}" text-anchor="end">{text(across)}</text>'
        + "".join(_path(one, x_of, y_of) for one in series)
    )
    label = text(f"{name}, {unit}" if unit else name)
    spoken = text("; ".join(f"{s.look.label} ends at {s.line[-1][1]:.4g}" for s in series))
    return (
        f'<figure><figcaption>{label}</figcaption><svg class="chart" role="img" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{label}: {spoken}">{"".join(parts)}</svg></figure>'
    )


def _path(one: Series, x_of: Place, y_of: Place) -> str:
    places = " L".join(f"{x_of(x)},{y_of(y)}" for x, y in thin(one.line))
    dash = dashes(one.look.index)
    broken = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="curve" stroke="{one.look.tone}"{broken} d="M{places}"/>'


def thin(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST_POINTS` points, first and last among them."""
    step = max(1, math.ceil(len(line) / MOST_POINTS))
    return [*line[:-1:step], line[-1]]
