"""The report in a browser: no sideways scroll, legible, in light and dark, nothing missing, nothing run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.results.record import read_result, write_result
from mimbench.scores.figures import Figure
from mimbench.suite.report.page import make_report
from tests.support.browser import MISSING, PROGRAM, ReaderPage, reader
from tests.support.results_folder import write_manifest, write_run

pytestmark = pytest.mark.skipif(not PROGRAM, reason=MISSING)
HOSTILE = '"><img src=x onerror="window.taken=true"><script>window.taken=true</script>\u202e'
LONG = "a" * 90
LAYOUTS = [(360, False), (768, True), (1400, False), (1400, True)]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of every kind of part, with hostile and with endless names."""
    out = tmp_path_factory.mktemp("report")
    write_manifest(out)
    runs = out / "runs"
    for name, share, draw in (
        ("good", 0.8, 0),
        (HOSTILE, 0.6, 1),
        (LONG, 0.5, 2),
        ("random-B-16", 0.2, 3),
    ):
        for benchmark in ("in-knn", "in-ft-hpm"):
            write_run(runs, name, share=share, draw=draw, benchmark=benchmark, pictures=("a", "b"))
    folder = next(runs.glob("*-good/in-ft-hpm"))
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "pictures" / "a.png")
    Image.new("RGB", (1300, 300), "blue").save(folder / "pictures" / "b.png")
    (folder / "log.txt").write_text(f"08:00:00 warning: {HOSTILE}\n")
    figures = (
        Figure(title=HOSTILE, values={f"class {i} {HOSTILE}": float(i) for i in range(30)}),
        Figure(title=f"top-1: {LONG}, by block", values={"1": 10.0, "12": 40.0}, kind="line"),
    )
    for path in runs.glob("*/in-ft-hpm/result.json"):
        write_result(path, replace(read_result(path), figures=figures))
    failed = next(runs.glob(f"*-{LONG[:20]}*/in-knn/result.json"))
    write_result(failed, replace(read_result(failed), status="failed", error=HOSTILE, metrics={}))
    page = make_report(runs, load_manifest(out / "benchmarks.yaml"), compute=False)
    for anchor in ("overview", "costs", "worries", "curves", "layers", "classes", "confusions"):
        assert f'<section id="{anchor}">' in page
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReaderPage]:
    with reader(tmp_path_factory.mktemp("profile")) as found:
        yield found


def measured(
    page: ReaderPage, folder: Path, html: str, width: int, *, dark: bool
) -> dict[str, Any]:
    (folder / "report.html").write_text(html, encoding="utf-8")
    page.resize(width, dark=dark)
    page.open(folder / "report.html")
    return page.measure()


@pytest.mark.parametrize(("width", "dark"), LAYOUTS)
def test_the_report_is_fit_to_be_read(
    page: ReaderPage, html: str, tmp_path: Path, width: int, dark: bool
) -> None:
    found = measured(page, tmp_path, html, width, dark=dark)
    assert found["texts"] > 300
    assert (found["overflow"], found["broad"]) == (0, [])
    assert found["faint"] == [], "text with a contrast below 4.5"
    assert found["pale"] == [], "graphics with a contrast below 3"
    assert found["small"] == [], "letters below 10 pixels"
    assert (found["missing"], found["unnamed"]) == ([], [])
    assert (found["scripts"], found["taken"]) == (0, False)
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in paper[4:-1].split(",")) < 200) is dark


FAULTS = {
    "overflow": '<div style="width:2000px">x</div>',
    "broad": '<div style="overflow:hidden"><p style="width:2000px;max-width:none">x</p></div>',
    "faint": '<p style="color:#aaa">faint</p>',
    "pale": '<svg role="img" aria-label="x"><path class="curve" stroke="#eee" d="M0,0H9"/></svg>',
    "small": '<svg role="img" aria-label="x" viewBox="0 0 1000 10" width="300"><text y="9">tiny</text></svg>',
    "missing": '<img alt="gone" src="data:image/png;base64,AAAA">',
    "unnamed": '<svg><path d="M0,0H9"/></svg>',
    "taken": '<img alt="x" src="gone" onerror="window.taken = true">',
    "scripts": "<script>0</script>",
}


def test_each_rule_finds_its_fault(page: ReaderPage, html: str, tmp_path: Path) -> None:
    for rule, fault in FAULTS.items():
        broken = html.replace("</main>", f"{fault}</main>")
        assert measured(page, tmp_path, broken, 768, dark=False)[rule], rule


def test_paper_is_light_and_shows_everything(page: ReaderPage, html: str, tmp_path: Path) -> None:
    measured(page, tmp_path, html, 768, dark=True)
    page.ask("Emulation.setEmulatedMedia", media="print", features=[])
    assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.run("getComputedStyle(document.querySelector('.wide')).overflowX") == "visible"
    found = page.measure()
    assert (found["faint"], found["pale"]) == ([], [])
    page.ask("Emulation.setEmulatedMedia", media="", features=[])
