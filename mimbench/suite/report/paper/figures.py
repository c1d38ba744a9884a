"""All figures of an output folder, written for a paper."""

from pathlib import Path

from mimbench.benchmarks.run_config import safe_name
from mimbench.suite.report.classes import scores_of
from mimbench.suite.report.curves import Series, names_of, read_curves
from mimbench.suite.report.gathered import Gathered
from mimbench.suite.report.learning import layer_lines, shared
from mimbench.suite.report.overview import strips_of
from mimbench.suite.report.paper.intervals import overview_figures
from mimbench.suite.report.paper.plots import classes_figure, lines_figure
from mimbench.suite.report.paper.sheet import COLUMN, PAGE, paper_style, write


def write_figures(gathered: Gathered, folder: Path) -> list[Path]:
    """Write the overview, curves, classes and layers as SVG and PDF; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with paper_style():
        strips, looks = strips_of(gathered.table), list(gathered.looks.values())
        for name, width in (("overview", PAGE), ("overview-column", COLUMN)):
            parts = overview_figures(strips, looks, width)
            for i, figure in enumerate(parts, 1):
                paths += write(figure, folder, name if len(parts) == 1 else f"{name}-{i}")
        for i, (title, runs) in enumerate(gathered.first_seeds(), 1):
            found = [(look, read_curves(path)) for look, path, _ in runs]
            charts = [
                (name, [Series(look, x[name]) for look, x in found if name in x], "step")
                for name in names_of([x for _, x in found])
            ]
            if charts:
                paths += write(lines_figure(charts), folder, _named("curves", i, title))
        for i, (title, figures) in enumerate(layer_lines(gathered), 1):
            for j, family in enumerate(shared(figures), 1):
                name = _named("layers", i, f"{j}-{title}")
                # scores by contract
                figure = lines_figure(family, family=family[0][0].partition(":")[0], unit="%")
                paths += write(figure, folder, name)
        for i, scores in enumerate(scores_of(gathered), 1):
            paths += write(classes_figure(scores), folder, _named("classes", i, scores.title))
    return paths


def _named(kind: str, number: int, title: str) -> str:
    """Return a file's name: titles may be alike once they are made safe, numbers are not."""
    return f"{kind}-{number:02d}-{safe_name(title).lower()}"
