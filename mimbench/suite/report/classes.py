"""Scores by class: every row on one axis, sorted by what the first row gains over its reference."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mimbench.benchmarks.records import outcomes_of
from mimbench.results.record import Result
from mimbench.scores.figures import Figure
from mimbench.suite.report.colours import RowLook, symbol
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import row_key, text
from mimbench.suite.report.scales import Scale, tick_text

SHOWN, LANE = 10, 20


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Named values of several rows: classes, corruptions, data sets."""

    title: str
    looks: Sequence[RowLook]
    values: Mapping[RowLook, Mapping[str, float]]

    @property
    def reference(self) -> RowLook | None:
        """Return what differences are taken to: random weights of the same shape, else the last row."""
        twins = [look for look in self.looks[1:] if look.twin and look.model == self.looks[0].model]
        return (twins or list(self.looks[1:]) or [None])[-1]

    def gap(self, name: str) -> float | None:
        """Return the first row's value minus the reference's."""
        mine = self.values[self.looks[0]].get(name)
        other = self.values[self.reference].get(name) if self.reference else None
        return None if mine is None or other is None else mine - other

    def order(self) -> list[str]:
        """Return the names, largest gain first; without a reference the highest value first."""
        names = dict.fromkeys(name for look in self.looks for name in self.values[look])
        mine = self.values[self.looks[0]]

        def rank(name: str) -> tuple[bool, float]:
            gap = self.gap(name)
            key = gap if gap is not None else mine.get(name) if not self.reference else None
            return key is None, -(key or 0.0)

        return sorted(names, key=rank)


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


def scores_of(gathered: Gathered) -> list[ClassScores]:
    """Return the scores by class of each benchmark and figure, with all rows that have them."""
    found = []
    for title, runs in gathered.first_seeds():
        figures: dict[str, dict[RowLook, Mapping[str, float]]] = {}
        for look, path, result in runs:
            for figure in figures_of(path, result, gathered.manifest.tasks):
                if figure.kind == "bars" and figure.values:
                    figures.setdefault(figure.title, {})[look] = figure.values
        found += [
            ClassScores(title=f"{title}: {name}" if name else title, looks=list(by), values=by)
            for name, by in figures.items()
        ]
    return found


def classes(gathered: Gathered) -> list[str]:
    """Return the plots of all benchmarks."""
    found = scores_of(gathered)
    note = (
        "Numbers at the right: the first row minus random weights, or minus the last row where none "
        "ran. Largest gain first."
    )
    plots = "".join(draw_classes(scores) for scores in found)
    grid = f'<div class="grid class-grid">{plots}</div>'
    return [row_key(gathered.looks.values()), f'<p class="soft">{note}</p>', grid] if found else []


def draw_classes(scores: ClassScores) -> str:
    """Return a plot of all classes, or of those that gain and lose most where there are many."""
    order = scores.order()
    parts = [order]
    if len(order) > 2 * SHOWN + 1:
        parts = [order[:SHOWN], order[-SHOWN:]]
    ends = [value for found in scores.values.values() for value in found.values()]
    scale = Scale.around(ends)
    between = f'<p class="soft">{len(order) - 2 * SHOWN} more between these</p>'
    blocks = [_lanes(scores, names, scale) for names in parts]
    return f"<div><h3>{text(scores.title)}</h3>{between.join(blocks)}</div>"


def _lanes(scores: ClassScores, names: Sequence[str], scale: Scale) -> str:
    gaps = [scores.gap(name) for name in names]
    labels = "".join(f'<li title="{text(name)}">{text(name)}</li>' for name in names)
    words = "".join(
        f"<li>{f'{gap:+.1f}' if gap is not None else _value(scores, name)}</li>"
        for name, gap in zip(names, gaps, strict=True)
    )
    base = LANE * len(names) + 2
    inside = "".join(_ticks(scale, base))
    inside += "".join(
        _lane(scores, name, scale, LANE * i + LANE // 2) for i, name in enumerate(names)
    )
    spoken = "; ".join(
        f"{name}: "
        + ", ".join(f"{k.label} {v[name]:.1f}" for k, v in scores.values.items() if name in v)
        for name in names
    )
    return (
        f'<div class="lanes"><ul>{labels}</ul><svg width="100%" height="{base + 20}" role="img" '
        f'aria-label="{text(scores.title)}: {text(spoken)}">{inside}</svg><ul>{words}</ul></div>'
    )


def _value(scores: ClassScores, name: str) -> str:
    value = scores.values[scores.looks[0]].get(name)
    return "·" if value is None else f"{value:.1f}"


def _ticks(scale: Scale, base: int) -> list[str]:
    parts = [f'<line class="axis" x1="0" x2="100%" y1="{base}" y2="{base}"/>']
    for tick in scale.ticks(4):
        x = f"{100 * scale.place(tick):.2f}%"
        parts.append(
            f'<line class="grid-line" x1="{x}" x2="{x}" y1="0" y2="{base}"/>'
            f'<text x="{x}" y="{base + 15}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    return parts


def _lane(scores: ClassScores, name: str, scale: Scale, y: int) -> str:
    """Return a line from the lowest to the highest row, and a symbol for each row."""
    known = {look: found[name] for look, found in scores.values.items() if name in found}
    ends = [f"{100 * scale.place(v):.2f}%" for v in (min(known.values()), max(known.values()))]
    parts = [f'<line class="gap" x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>']
    # the first row is drawn last
    for look, value in reversed(known.items()):
        parts.append(
            f'<svg x="{100 * scale.place(value):.2f}%" y="{y}" overflow="visible" '
            f'style="--tone:{look.tone}"><path class="{look.fill}" d="{symbol(look.index)}"/>'
            f"<title>{text(look.label)}, {text(name)}: {value:.1f}</title></svg>"
        )
    return "".join(parts)
