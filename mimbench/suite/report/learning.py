"""Curves of a report: what benchmarks learnt step by step, pretraining, scores by layer and by state."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimbench.benchmarks.run_config import CONFIG_FILE, RESULT_FILE, read_run_config
from mimbench.scores.figures import Figure
from mimbench.suite.report.classes import figures_of
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.curves import (
    Line,
    Series,
    axes_of,
    chart,
    charts,
    is_number,
    read_curves,
)
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.markup import line_key, text

PRETRAINING, TIMELINE = "pretrain", "timeline/timeline.json"


def curves(gathered: Gathered) -> list[str]:
    """Return the training curves of all benchmarks, rows on common axes."""
    found = []
    for title, runs in gathered.first_seeds():
        if drawn := charts([(look, read_curves(path)) for look, path, _ in runs]):
            found.append(_block(title, drawn))
    return [line_key(gathered.looks.values()), *found] if found else []


def pretraining(gathered: Gathered) -> list[str]:
    """Return the curves of the checkpoints' own training, and their timelines, where they are known."""
    runs = dict(training_runs(gathered))
    found = []
    if drawn := charts([(look, read_curves(folder)) for look, folder in runs.items()]):
        found.append(_block("Training", drawn))
    lines = {look: read_timeline(folder / TIMELINE) for look, folder in runs.items()}
    names = dict.fromkeys(name for known in lines.values() for name in known)
    timeline = [
        chart(
            name, [Series(look, x[name]) for look, x in lines.items() if name in x], across="step"
        )
        for name in names
    ]
    if timeline:
        found.append(_block("Worth of the saved states", timeline))
    return [line_key(runs), *found] if found else []


def training_runs(gathered: Gathered) -> Iterator[tuple[RowLook, Path]]:
    """Yield the folder of each checkpoint's own training, if it lies there."""
    for look in gathered.looks.values():
        if look.twin:
            continue
        path = next(p for p, r in gathered.runs if gathered.look(r) == look)
        if not (path / CONFIG_FILE).is_file():
            continue
        folder = read_run_config(path / CONFIG_FILE).checkpoint.parent
        own = gathered.out / PRETRAINING
        # a folder that was moved keeps its pretraining beside its results
        folder = own if folder.name == PRETRAINING and not folder.is_dir() else folder
        if (folder / RESULT_FILE).is_file():
            continue
        if read_curves(folder) or (folder / TIMELINE).is_file():
            yield look, folder


def read_timeline(path: Path) -> dict[str, Line]:
    """Return figure -> (step, value) of a training run's saved states; {} without a readable file."""
    try:
        states = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    lines: dict[str, Line] = {}
    for state in states if isinstance(states, list) else []:
        if isinstance(state, dict) and is_number(state.get("step")):
            for name, value in _figures(state).items():
                if is_number(value):
                    lines.setdefault(name, []).append((float(state["step"]), float(value)))
    return {name: sorted(line) for name, line in lines.items() if len(line) > 1}


def _figures(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state's scores, its loss, and what its masks were like."""
    found: dict[str, Any] = {}
    for key, prefix in (("scores", ""), ("masks", "masks: ")):
        part = state.get(key)
        found |= {f"{prefix}{k}": v for k, v in part.items()} if isinstance(part, dict) else {}
    skipped = ("masks: step", "masks: images", "masks: ratio")
    return {"loss": state.get("loss")} | {k: v for k, v in found.items() if k not in skipped}


def layer_lines(gathered: Gathered) -> Iterator[tuple[str, dict[str, list[Series]]]]:
    """Yield each benchmark's title with what its task drew as lines: figure -> a line for each row."""
    for title, runs in gathered.first_seeds():
        figures: dict[str, list[Series]] = {}
        for look, path, result in runs:
            for figure in figures_of(path, result, gathered.manifest.tasks):
                if figure.kind == "line" and len(figure.values) > 1:
                    figures.setdefault(figure.title, []).append(Series(look, line_of(figure)))
        if figures:
            yield title, figures


def shared(figures: Mapping[str, list[Series]]) -> list[list[tuple[str, list[Series], str]]]:
    """Return (title, lines, across) of figures whose titles begin alike together: one vertical axis."""
    families: dict[str, list[tuple[str, list[Series], str]]] = {}
    for title, series in figures.items():
        across = title.rpartition("by ")[2] if "by " in title else ""
        families.setdefault(title.partition(":")[0], []).append((title, series, across))
    return list(families.values())


def layers(gathered: Gathered) -> list[str]:
    """Return what tasks drew as lines, by layer or severity: each figure with all rows in it."""
    found = []
    for name, figures in layer_lines(gathered):
        drawn = []
        for family in shared(figures):
            up = axes_of([one for _, series, _ in family for one in series])[1]
            # scores by contract
            drawn += [chart(t, series, across=by, up=up, unit="%") for t, series, by in family]
        found.append(_block(name, drawn))
    return [line_key(gathered.looks.values()), *found] if found else []


def line_of(figure: Figure) -> Line:
    """Return a figure's values as points; names that are no numbers count up."""
    return [(_number(name, i), value) for i, (name, value) in enumerate(figure.values.items())]


def _number(name: str, place: int) -> float:
    try:
        return float(name)
    except ValueError:
        return float(place)


def _block(title: str, drawn: list[str]) -> str:
    return f'<h3>{text(title)}</h3><div class="grid">{"".join(drawn)}</div>'
