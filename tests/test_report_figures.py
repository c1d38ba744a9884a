"""Figures for a paper: vector, fonts embedded, the table's own values, in widths that journals set."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawn

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands import report
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.curves import Series
from mimbench.suite.report.gathered import Gathered, gather
from mimbench.suite.report.overview import strips_of
from mimbench.suite.report.paper.intervals import overview_figures
from mimbench.suite.report.paper.plots import lines_figure
from mimbench.suite.report.paper.sheet import COLUMN, PAGE, paper_style
from mimbench.suite.report.strips import Dot, Lane, Strip
from mimbench.system.options import Parser
from tests.support.results_folder import write_manifest, write_run

HOSTILE = "$\\frac{1}{$ <script> & \u202e\x07 %_^ 中"


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    out = tmp_path_factory.mktemp("figures")
    write_manifest(out)
    for name, share in ((HOSTILE, 0.8), ("random-B-16", 0.3)):
        for benchmark in ("in-knn", "in-ft-hpm"):
            write_run(out / "runs", name, share=share, benchmark=benchmark)
    return gather(out / "runs", load_manifest(out / "benchmarks.yaml"))


@pytest.fixture(scope="module")
def written(gathered: Gathered, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The command's own."""
    parser, out = Parser(), tmp_path_factory.mktemp("written")
    report.add_arguments(parser)
    words = [str(gathered.out), "--out", str(out / "r.html"), "--no-compute"]
    words += ["--benchmarks", str(gathered.out.parent / "benchmarks.yaml")]
    assert report.main(parser.parse_args([*words, "--figures", str(out / "a" / "b")])) == 0
    assert (out / "r.html").is_file()
    return sorted((out / "a" / "b").iterdir())


def streams(path: Path) -> bytes:
    """A PDF's whole content, unpacked."""
    content = path.read_bytes()
    found = re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL)
    unpacked = []
    for stream in found:
        try:
            unpacked.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return content + b"".join(unpacked)


def test_each_plot_is_there_as_svg_and_pdf(written: list[Path]) -> None:
    names = sorted({path.stem for path in written})
    assert names == [
        "classes-01-k-nn", "classes-02-fine-tune", "curves-01-k-nn", "curves-02-fine-tune",
        "overview", "overview-column",
    ]  # fmt: skip
    assert len(written) == 2 * len(names)
    assert all(path.stat().st_size > 2000 for path in written)


def test_fonts_are_embedded_and_all_is_vector(written: list[Path]) -> None:
    for path in written:
        if path.suffix == ".pdf":
            content = streams(path)
            assert b"/FontFile2" in content, "TrueType (Type 42), embedded"
            assert b"/Type3" not in content
            assert b"/Subtype /Image" not in content
        else:
            content = path.read_text(encoding="utf-8")
            assert "<image" not in content
            assert "<text" not in content, "letters are outlines: no font is needed"
            assert "<script>" not in content


def test_widths_are_a_column_and_a_page(written: list[Path]) -> None:
    widths = {}
    for path in (p for p in written if p.suffix == ".pdf"):
        found = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", streams(path))
        assert found is not None
        widths[path.stem] = float(found[1]) / 72
        assert float(found[2]) / 72 < 9.5, "higher than a page"
    assert widths["overview"] == pytest.approx(PAGE, abs=0.01)
    assert widths["overview-column"] == pytest.approx(COLUMN, abs=0.01)
    assert widths["classes-01-k-nn"] == pytest.approx(COLUMN, abs=0.01)


def test_the_same_results_give_the_same_files(
    gathered: Gathered, written: list[Path], tmp_path: Path
) -> None:
    with paper_style():
        [figure] = overview_figures(strips_of(gathered.table), list(gathered.looks.values()), PAGE)
        figure.savefig(tmp_path / "again.svg", metadata={"Date": None})
    first = next(path for path in written if path.name == "overview.svg")
    assert (tmp_path / "again.svg").read_bytes() == first.read_bytes()


def dots(figure: Drawn) -> list[list[float]]:
    """The values that each axis shows as symbols."""
    return [
        [
            float(np.asarray(line.get_xdata())[0])
            for line in axes.lines
            if str(line.get_marker()) in "os"
        ]
        for axes in figure.axes
    ]


def test_the_overview_shows_the_tables_values(gathered: Gathered) -> None:
    strips = strips_of(gathered.table)
    with paper_style():
        [figure] = overview_figures(strips, list(gathered.looks.values()), COLUMN)
    expected = [
        [dot.value for lane in strip.lanes if lane.kind != "published" for dot in lane.dots]
        for strip in strips
    ]
    assert dots(figure) == expected


def test_smaller_is_better_runs_from_right_to_left() -> None:
    lane = Lane(label="a", kind="row", dots=[Dot(label="a", value=3.0, half=1.0)])
    strip = Strip(title="error", unit="mce", lower=True, lanes=[lane])
    with paper_style():
        [figure] = overview_figures([strip], [RowLook("a", 0)], PAGE)
    left, right = figure.axes[0].get_xlim()
    assert left > right


def test_many_benchmarks_become_several_figures() -> None:
    lane = Lane(label="a", kind="row", dots=[Dot(label="a", value=3.0)])
    strips = [Strip(title=f"{i}", unit="x", lower=False, lanes=[lane] * 4) for i in range(40)]
    with paper_style():
        figures = overview_figures(strips, [RowLook("a", 0)], PAGE)
    assert sum(len(figure.axes) for figure in figures) == 40
    assert all(figure.get_figheight() <= 9.5 for figure in figures)
    heights = [figure.get_figheight() for figure in figures]
    assert max(heights) < 1.3 * min(heights), "alike in height"


def test_a_family_of_lines_shares_its_axis() -> None:
    look = RowLook(HOSTILE, 0)
    charts = [
        (f"k-NN: {name}, by block", [Series(look, [(1.0, low), (2.0, 50.0)])], "block")
        for name, low in (("cls", 0.0), ("avg", 40.0))
    ]
    with paper_style():
        figure = lines_figure(charts, family="k-NN", unit="%")
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert [axes.get_title("left") for axes in figure.axes] == ["cls, %", "avg, %"]
