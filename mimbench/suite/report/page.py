"""Put the report together: table, figures, pictures, provenance, commands to repeat."""

import logging
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from mimbench.benchmarks.manifest import Manifest
from mimbench.benchmarks.run_config import CONFIG_FILE, RunConfig, read_run_config
from mimbench.checkpoints.files import read_weights
from mimbench.checkpoints.names.located import locate, present
from mimbench.results.record import Result
from mimbench.suite.report.classes import draw_figure, figures_of
from mimbench.suite.report.colours import variables
from mimbench.suite.report.curves import charts, read_curves
from mimbench.suite.report.gallery import drawn_in, masks, neighbours, pictures_in
from mimbench.suite.report.markup import legend, section, text
from mimbench.suite.report.origins import provenance_of, repeat
from mimbench.suite.report.overview import overview
from mimbench.suite.report.result_table import html_table
from mimbench.system.errors import UserError
from mimbench.system.runtime import pick_device
from mimbench.tables.columns import is_own, own_title
from mimbench.tables.table import TWIN, make_table, read_results_with_folders

logger = logging.getLogger(__name__)
Run = tuple[Path, Result]
SECTIONS = {
    "overview": "Against random weights and published rows",
    "table": "Table",
    "curves": "Curves",
    "classes": "Per class",
    "masks": "Masks and predicted loss",
    "neighbours": "Nearest neighbours",
    "pictures": "Pictures",
    "provenance": "Provenance",
    "repeat": "Repeat",
}


def make_report(
    out: Path, manifest: Manifest, *, choice: Mapping[str, str] | None = None, compute: bool = True
) -> str:
    """Return the report of an output folder as one HTML page.

    Args:
        out: What `run` wrote.
        manifest: Titles and published rows.
        choice: Row name -> published row to compare with.
        compute: Also make pictures that need the checkpoints and the data (nearest neighbours).
    """
    runs = read_results_with_folders(out)
    if not runs:
        raise UserError(f"no results in {out}; name the folder that a run wrote (--out)")
    table = make_table([r for _, r in runs], manifest, choice=choice)
    place = {name: i for i, name in enumerate(manifest.benchmarks)}
    runs.sort(key=lambda x: (x[1].weights["name"].startswith(TWIN), place.get(x[1].benchmark, 0)))
    rows = list(dict.fromkeys((r.weights["name"], r.weights["digest"]) for _, r in runs))
    done = [(p, r) for p, r in runs if r.status == "done"]
    parts = {
        "overview": overview(table),
        "table": [html_table(table)],
        "curves": _curves(done, rows, manifest),
        "classes": _classes(done, rows, manifest),
        "masks": _masks(done, rows) if compute else [],
        "neighbours": _neighbours(done, rows) if compute else [],
        "pictures": _pictures(out, done),
        "provenance": [provenance_of(runs)],
        "repeat": [repeat(out, runs)],
    }
    body = {anchor: section(anchor, SECTIONS[anchor], content) for anchor, content in parts.items()}
    links = "".join(
        f'<a href="#{a}">{text(SECTIONS[a])}</a>' for a, content in body.items() if content
    )
    names = ", ".join(row.label for row in table.rows if row.kind == "measured")
    style = files("mimbench.suite.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(names)} · mimbench</title><style>{variables()}{style}</style></head><body>\n"
        f'<header><h1>How well does it transfer?</h1><p class="soft">{text(names)}</p><nav>{links}</nav></header>\n'
        + "\n".join(body.values())
        + "\n</body></html>\n"
    )


def _title(result: Result, manifest: Manifest) -> str:
    known = manifest.benchmarks.get(result.benchmark)
    title = known.title if known else result.benchmark
    return own_title(title, result) if is_own(result) else title


def _what(result: Result) -> tuple[str, str]:
    """Return what a run measures: the benchmark, on which of several data sets of the user's own."""
    return result.benchmark, str(result.config["dataset"]) if is_own(result) else ""


def _number(result: Result, rows: Sequence[tuple[str, str]]) -> int:
    return rows.index((result.weights["name"], result.weights["digest"]))


def _curves(runs: Sequence[Run], rows: Sequence[tuple[str, str]], manifest: Manifest) -> list[str]:
    found = []
    for what in dict.fromkeys(_what(r) for _, r in runs):
        mine = [(p, r) for p, r in runs if _what(r) == what]
        curves = {_number(r, rows): read_curves(p) for p, r in mine}
        if drawn := charts(curves):
            found.append(
                f'<h3>{text(_title(mine[0][1], manifest))}</h3><div class="grid">{"".join(drawn)}</div>'
            )
    return [legend(name for name, _ in rows), *found] if found else []


def _classes(runs: Sequence[Run], rows: Sequence[tuple[str, str]], manifest: Manifest) -> list[str]:
    blocks = []
    for what in dict.fromkeys(_what(r) for _, r in runs):
        bars = [
            draw_figure(figure, rows[_number(r, rows)][0], _number(r, rows))
            for p, r in runs
            if _what(r) == what and not r.provenance.seed
            for figure in figures_of(p, r, manifest.tasks)
        ]
        if bars:
            title = next(_title(r, manifest) for _, r in runs if _what(r) == what)
            blocks.append(f'<h3>{text(title)}</h3><div class="grid">{"".join(bars)}</div>')
    return blocks


def _labelled(
    runs: Sequence[Run], rows: Sequence[tuple[str, str]]
) -> list[tuple[str, RunConfig, Path]]:
    """Return (row, run, data) for each row whose checkpoint and labelled images are still there."""
    found = []
    for row in rows:
        mine = [(p, r) for p, r in runs if (r.weights["name"], r.weights["digest"]) == row]
        fit = [(p, r) for p, r in mine if _has_classes(r)]
        if not fit:
            continue
        run = read_run_config(fit[0][0] / CONFIG_FILE)
        if present(run.checkpoint):
            found.append((row[0], run, Path(fit[0][1].data)))
        else:
            logger.warning("%s is gone: no pictures are computed for %s", run.checkpoint, row[0])
    return found


def _masks(runs: Sequence[Run], rows: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    for name, run, data in _labelled(runs, rows):
        weights = read_weights(run.checkpoint, which=run.which, num_heads=run.num_heads)
        if shown := masks(locate(run.checkpoint).path, weights, data):
            found.append(f'<h3>{text(name)}</h3><div class="wide">{"".join(shown)}</div>')
    return found


def _neighbours(runs: Sequence[Run], rows: Sequence[tuple[str, str]]) -> list[str]:
    found = []
    for name, run, data in _labelled(runs, rows):
        weights = read_weights(run.checkpoint, which=run.which, num_heads=run.num_heads)
        shown = neighbours(weights, data, pick_device("auto"))
        found.append(f'<h3>{text(name)}</h3><div class="grid">{"".join(shown)}</div>')
    return found


def _has_classes(result: Result) -> bool:
    folder = Path(result.data)
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _pictures(out: Path, runs: Sequence[Run]) -> list[str]:
    found = []
    if shown := drawn_in(out / "pretrain"):
        found.append(f'<h3>Pretraining</h3><div class="pictures">{"".join(shown)}</div>')
    for path, result in runs:
        if shown := pictures_in(path, result):
            found.append(
                f"<h3>{text(result.benchmark)} · {text(result.weights['name'])}</h3>"
                f'<div class="pictures">{"".join(shown)}</div>'
            )
    return found
