"""Training curves as small line charts, one for each figure that a benchmark logged."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mimbench.suite.report.colours import colour
from mimbench.suite.report.markup import text
from mimbench.training.curve import read_curve

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 190, 40, 22, 8
MOST_POINTS, MOST_FIGURES = 400, 3
SHOWN_FIRST = ("loss", "top1", "ap", "iou", "acc")
"""What a reader looks for in a curve, in this order."""
UNTOLD = re.compile(r"epoch|lr|.*(per_second|_time|images|gib|norm)")
"""What says how a run was carried out rather than what was learnt."""
Line = list[tuple[float, float]]


def read_curves(folder: Path) -> dict[str, Line]:
    """Return figure -> (step, value) points of a run's curve."""
    curves: dict[str, Line] = {}
    for entry in read_curve(folder):
        for name, value in entry.items():
            if name != "step" and _number(value):
                curves.setdefault(name, []).append((float(entry["step"]), float(value)))
    return {name: line for name, line in curves.items() if len(line) > 1}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def charts(curves: Mapping[int, Mapping[str, Line]]) -> list[str]:
    """Return one chart for each figure; rows keep their colours.

    Args:
        curves: Row number -> figure -> points.
    """
    names = list(dict.fromkeys(name for found in curves.values() for name in found))
    names = [n for n in names if not UNTOLD.fullmatch(n)]
    names.sort(key=_rank)
    return [
        chart(n, {row: found[n] for row, found in curves.items() if n in found})
        for n in names[:MOST_FIGURES]
    ]


def _rank(name: str) -> tuple[int, int, str]:
    """Return what figures are sorted by: the whole loss before its parts, losses before scores."""
    kind = next((i for i, word in enumerate(SHOWN_FIRST) if word in name), len(SHOWN_FIRST))
    return kind, int(name not in ("loss", "total_loss")), name


def chart(name: str, lines: Mapping[int, Line], *, across: str = "step") -> str:
    """Return a line chart as SVG; `across` names what its points are a function of."""
    points = [p for line in lines.values() for p in line]
    x0, x1 = _range([x for x, _ in points])
    y0, y1 = _range([y for _, y in points])

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (WIDTH - LEFT - 6) * (point[0] - x0) / (x1 - x0)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (point[1] - y0) / (y1 - y0))
        return f"{x:.1f},{y:.1f}"

    paths = [
        f'<path class="curve" stroke="{colour(row)}" d="M{" L".join(place(p) for p in thin(line))}"/>'
        for row, line in lines.items()
    ]
    base = HEIGHT - BOTTOM
    axes = (
        f'<path class="axis" d="M{LEFT},{TOP} V{base} H{WIDTH - 6}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{y1:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{base}" text-anchor="end">{y0:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{x0:g}</text>'
        f'<text x="{WIDTH - 6}" y="{HEIGHT - 6}" text-anchor="end">{across} {x1:g}</text>'
    )
    label = text(name)
    return (
        f'<figure><figcaption>{label}</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{label}">{axes}{"".join(paths)}</svg></figure>'
    )


def thin(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST_POINTS` points, first and last among them."""
    step = max(1, math.ceil(len(line) / MOST_POINTS))
    return [*line[:-1:step], line[-1]]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
