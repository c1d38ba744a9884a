"""Figures of a run: scores by class and other named values, as bars or lines."""

from collections.abc import Collection, Mapping
from pathlib import Path

from mimbench.benchmarks.records import outcomes_of
from mimbench.results.record import Result
from mimbench.scores.figures import Figure
from mimbench.suite.report.curves import chart
from mimbench.suite.report.markup import bar, text

SHOWN = 10


def figures_of(folder: Path, result: Result, tasks: Collection[str]) -> list[Figure]:
    """Return what the task drew itself, else the scores by class that its outcomes tell.

    Args:
        folder: A run's.
        result: Its result.
        tasks: Tasks whose own kinds of outcomes may be loaded.
    """
    if result.figures:
        return list(result.figures)
    for kept in outcomes_of(folder, result, tasks):
        if scores := kept.classes():
            return [Figure(title="", values=scores)]
    return []


def draw_figure(figure: Figure, row: str, index: int) -> str:
    """Return one figure of one row of the table."""
    title = f"{row}: {figure.title}" if figure.title else row
    if figure.kind == "line":
        points = [
            (_number(name, i), value) for i, (name, value) in enumerate(figure.values.items())
        ]
        return chart(title, {index: points}) if points else ""
    return class_bars(figure.values, title, index)


def _number(name: str, place: int) -> float:
    try:
        return float(name)
    except ValueError:
        return float(place)


def class_bars(scores: Mapping[str, float], title: str, index: int) -> str:
    """Return bars of all classes, or of the best and worst where there are many."""
    order = sorted(scores, key=lambda name: -scores[name])
    many = len(order) > 2 * SHOWN
    shown = order[:SHOWN] + order[-SHOWN:] if many else order
    # percentages share one scale
    largest = max(100.0, *scores.values())
    bars = [bar(name, scores[name], largest, index) for name in shown]
    if many:
        bars.insert(SHOWN, f'<p class="soft">{len(order) - 2 * SHOWN} more</p>')
    return f"<div><h3>{text(title)}</h3>{''.join(bars)}</div>"
