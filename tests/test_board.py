"""The board: verified bundles only, no two protocols in a column, paired verdicts, and a page that works everywhere."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mimbench.__main__ import main
from mimbench.benchmarks.run_config import safe_name
from mimbench.results.gap import Gap, Nearby, write_gap
from mimbench.results.record import read_result, write_result
from mimbench.scores.confidence import Interval
from mimbench.scores.verdicts import Comparison
from mimbench.suite.board.entries import Demands, letter
from mimbench.suite.board.making import Board, make_board
from mimbench.suite.board.standings import Pair, decided
from mimbench.suite.sharing.bundle import write_archive, write_bundle
from mimbench.suite.sharing.unpacking import unpack
from mimbench.system.errors import UserError
from mimbench.tables.foreign.kinds import parse_file
from mimbench.tables.rows import Column, Row
from tests.support.browser import MISSING, PROGRAM, ReaderPage, reader
from tests.support.foreign_files import EP
from tests.support.results_folder import write_manifest, write_run

HOSTILE = "<script>window.taken=true</script>\"onclick='x\u202e\x1b"


def pack(folder: Path, name: str, benchmarks: str = "benchmarks.yaml") -> Path:
    path = folder / f"{name}.tar.gz"
    write_bundle(folder / name, path, folder / benchmarks)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles: `hpm` in both with other results, `twin` beside its equal, a k of another protocol."""
    folder = tmp_path_factory.mktemp("board")
    write_manifest(folder)
    reference = (folder / "reference.yaml").read_text()
    same = "source: DINO code, also: ['efficient-probing ep, 32 queries, 224 px']"
    (folder / "reference.yaml").write_text(reference.replace("source: DINO code", same))
    for place, name, share, benchmark, draw, config in (
        ("one", "hpm", 0.80, "in-knn", 1, None),
        ("one", "near", 0.797, "in-knn", 1, None),
        ("one", "far", 0.60, "in-knn", 2, None),
        ("one", "far", 0.60, "in-ft-hpm", 2, None),
        ("two", "hpm", 0.70, "in-knn", 3, None),
        ("two", "random-b16", 0.20, "in-knn", 4, None),
        ("other", "ten", 0.90, "in-knn", 5, {"k": 10}),
    ):
        write_run(folder / place, name, share=share, benchmark=benchmark, draw=draw, config=config)
    (folder / "ten.yaml").write_text(
        (folder / "benchmarks.yaml").read_text().replace("k: 20", "k: 10")
    )
    (folder / "results.csv").write_text(EP)
    for place in ("one", "two"):
        pack(folder, place)
    pack(folder, "other", "ten.yaml")
    return folder


def board(folder: Path, *names: str, **options: object) -> Board:
    paths = [folder / f"{name}.tar.gz" for name in names or ("one", "two")]
    return make_board(paths, benchmarks=folder / "benchmarks.yaml", **options)  # pyright: ignore[reportArgumentType]


class Grid(HTMLParser):
    """The board's cells as text, by row and column."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = self.cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.inside = dict(attrs).get("id") == "board"
        if tag == "tr" and self.inside:
            self.rows.append([])
        if tag in ("td", "th") and self.inside:
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = False
        if tag == "table":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and self.cell:
            self.rows[-1][-1] += data

    def row(self, start: str) -> list[str]:
        [found] = [row for row in self.rows if row[0].startswith(start)]
        return found


def test_the_page_holds_every_number_with_its_interval(folder: Path) -> None:
    grid = Grid(board(folder).page)
    for place, name, shown in (("one", "far", "far"), ("two", "hpm", "hpm (bundle B)")):
        path = next((folder / place).glob(f"*-{name}/in-knn/result.json"))
        result = read_result(path)
        cell = grid.row(shown)[1]
        assert cell.startswith(f"{result.metrics['top1']:.2f}±{result.intervals['top1']:.2f}")
    head = grid.rows[0]
    assert [h.split("in-")[0] for h in head] == ["Checkpoint", "k-NN", "Fine-tune"]
    assert read_result(path).protocol in head[1]


def test_protocols_never_share_a_column(folder: Path) -> None:
    """One benchmark's name, two values of k: two columns, and the other recipe is called so."""
    grid = Grid(board(folder, "one", "other").page)
    heads = grid.rows[0]
    knn = [i for i, head in enumerate(heads) if "in-knn" in head]
    assert len(knn) == 2
    assert "[other recipe]" in heads[knn[1]]
    ten = grid.row("ten")
    assert ten[knn[0]] == "·"
    assert all("other recipe" not in heads[i] or row[i] == "·" for row in grid.rows[1:] for i in knn if not row[0].startswith("ten"))  # fmt: skip
    # published rows stand beside the published recipe only
    assert grid.row("DINO B/16")[knn[0]] == "76.10"
    assert grid.row("DINO B/16")[knn[1]] == "·"


def test_what_all_columns_share_is_said_at_each(folder: Path, tmp_path: Path) -> None:
    """A terminal's table says [demo] once, in its corner, which a board does not have."""
    for name in ("benchmarks.yaml", "reference.yaml"):
        shutil.copy(folder / name, tmp_path)
    manifest = tmp_path / "benchmarks.yaml"
    manifest.write_text(manifest.read_text().replace("dataset: imagenet,", "dataset: imagenet, profiles: {demo: {}, paper: {}},"))  # fmt: skip
    write_run(tmp_path / "demo", "a", share=0.5, trains=True)
    write_run(tmp_path / "demo", "b", share=0.9, trains=True, draw=1)
    for path in (tmp_path / "demo").rglob("in-knn"):
        config = path / "config.yaml"
        config.write_text(config.read_text().replace("profile: paper", "profile: demo"))
        write_result(
            path / "result.json", replace(read_result(path / "result.json"), profile="demo")
        )
        path.rename(path.with_name("in-knn.demo"))
    pack(tmp_path, "demo")
    found = board(tmp_path, "demo")
    assert found.page, found.refusals
    assert "k-NN [demo]" in Grid(found.page).rows[0][1]
    assert "[demo] sample data" in found.page
    assert re.search(r"-\d\d\.\d\d†", Grid(found.page).row("a")[1])
    assert "† on these test images" in found.page


def test_a_part_of_the_images_is_another_column(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "one", tmp_path / "one")
    for name in ("benchmarks.yaml", "reference.yaml"):
        shutil.copy(folder / name, tmp_path)
    path = next((tmp_path / "one").glob("*-far/in-knn/result.json"))
    write_result(path, replace(read_result(path), ran={"images": 100}))
    grid = Grid(board(tmp_path, *[pack(tmp_path, "one").name.removesuffix(".tar.gz")]).page)
    assert sum("in-knn" in head for head in grid.rows[0]) == 2
    assert any("[images 100]" in head for head in grid.rows[0])


def test_verdicts_are_paired_and_corrected(folder: Path) -> None:
    page = board(folder).page
    grid = Grid(page)
    assert "best" in grid.row("hpm (bundle A)")[1]
    assert "≈" in grid.row("near")[1]
    assert re.search(r"-\d\d\.\d\d$", grid.row("far")[1])
    assert "best" not in grid.row("far")[2], "alone in its column"
    # four rows against the best, in one column
    assert page.count("by Holm over 4 verdicts") >= 4
    assert "is better than far" in page
    assert "no difference shown between near and hpm (bundle A)" in page


def test_the_correction_covers_the_whole_page() -> None:
    """A difference that would pass alone does not beside another one of another column."""
    compared = Comparison(
        metric="top1", difference=-1.0, sampling=Interval(-1.9, -0.1), sampling_p=0.03
    )
    rows = [Row(label=label, kind="measured", values={}) for label in ("a", "b")]
    result: Any = SimpleNamespace(trains=False)

    def standing(*names: str) -> list[str]:
        columns = [Column(n, "paper", "x", n, "top1", official=True) for n in names]
        pairs = {(1, c): Pair(rows[1], rows[0], c, None, result, compared) for c in columns}
        return [s.kind for s in decided(pairs).values()]

    assert standing("k-NN") == ["behind"]
    assert standing("k-NN", "linear") == ["cannot tell", "cannot tell"]


def test_another_row_to_compare_with(folder: Path) -> None:
    grid = Grid(board(folder, against="far").page)
    assert "compared with" in grid.row("far")[1]
    assert "+" in grid.row("near")[1]
    with pytest.raises(UserError, match="--against 'fat' is no row; did you mean 'far'"):
        board(folder, against="fat")


def test_a_difference_inside_the_recipe_gap_is_no_difference(folder: Path, tmp_path: Path) -> None:
    """Plainly apart under the recipe, the other way round with smaller images."""
    for name in ("benchmarks.yaml", "reference.yaml"):
        shutil.copy(folder / name, tmp_path)
    shutil.copytree(folder / "one", tmp_path / "one")
    for name, other in (("hpm", 50.0), ("far", 90.0)):
        path = next((tmp_path / "one").glob(f"*-{name}/in-knn"))
        result = read_result(path / "result.json")
        settings = (Nearby(setting="smaller images", value=other),)
        gap = Gap(metric="top1", value=result.metrics["top1"], settings=settings, complete=True)
        write_gap(path, replace(gap, built_on=result.checksum))
    pack(tmp_path, "one")
    page = board(tmp_path, "one").page
    assert re.search(r"gap 6\d\.\d\d to 90\.00 ≈ -\d\d\.\d\d", Grid(page).row("far")[1])
    assert "cannot tell far from hpm: it depends on the recipe" in page


def test_other_test_images_are_not_compared(folder: Path, tmp_path: Path) -> None:
    for name in ("benchmarks.yaml", "reference.yaml"):
        shutil.copy(folder / name, tmp_path)
    shutil.copy(folder / "one.tar.gz", tmp_path)
    write_run(tmp_path / "few", "few", share=0.7, images=300)
    pack(tmp_path, "few")
    grid = Grid(board(tmp_path, "one", "few").page)
    assert grid.row("few")[1].endswith("not compared")


def test_imported_rows_are_references(folder: Path) -> None:
    rows = parse_file(folder / "results.csv", "ep", "efficient-probing at b8f4fb8")
    page = board(folder, imported=rows).page
    grid = Grid(page)
    mine = grid.row("MAE ViT-B/16")
    assert mine[1] == "75.46"
    assert mine[2] == "·"
    assert "imported, not measured here: efficient-probing at b8f4fb8 (Apache-2.0)" in page
    [measured] = [row for row in grid.rows if row[0].startswith("near")]
    assert measured[1] == Grid(board(folder).page).row("near")[1]


def tampered(folder: Path, path: Path) -> Path:
    """A bundle whose first result was made better."""
    root = path.parent / "root"
    root.mkdir()
    unpack(folder / "one.tar.gz", root)
    result = sorted(root.rglob("result.json"))[0]
    result.write_text(re.sub(r'("top1": )\d+\.\d+', r"\g<1>99.5", result.read_text(), count=1))
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    write_archive(path, files)
    return path


def run(folder: Path, out: Path, *arguments: str) -> int:
    given = ["--benchmarks", str(folder / "benchmarks.yaml"), "-o", str(out)]
    return main(["board", *arguments, *given])


def test_a_tampered_bundle_is_refused_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out = tampered(folder, tmp_path / "bad.tar.gz"), tmp_path / "board.html"
    assert run(folder, out, str(folder / "two.tar.gz"), str(bad)) == 1
    captured = capsys.readouterr()
    assert re.search(r"refused: bad\.tar\.gz: .*result\.json was changed", captured.err)
    assert "edited after it was written" in captured.err
    assert not out.exists()
    assert run(folder, out, str(folder / "two.tar.gz"), str(bad), "--skip") == 0
    assert "1 bundles, 1 refused" in capsys.readouterr().out
    page = out.read_text()
    assert "Refused: bad.tar.gz" in page
    assert "result.json was changed" in page
    assert "99.5" not in page
    assert run(folder, tmp_path / "none.html", str(bad), "--skip") == 1


REFUSED = {
    "no bundle": (lambda folder, path: path.write_bytes(b"x"), [], "is not a readable bundle"),
    "gone": (lambda folder, path: None, [], "no such file"),
    "another digest": (
        lambda folder, path: shutil.copy(folder / "one.tar.gz", path),
        ["--digests", "0" * 64],
        "is none of those that were published",
    ),
    "not signed": (
        lambda folder, path: shutil.copy(folder / "one.tar.gz", path),
        ["--signer", "KEY"],
        "it is not signed",
    ),
    "not proven": (
        lambda folder, path: shutil.copy(folder / "other.tar.gz", path),
        ["--strict"],
        "not proven: the recipe of in-knn is not the one of this mimbench",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options, reason = REFUSED[name]
    make(folder, tmp_path / "x.tar.gz")
    (tmp_path / "KEY").write_text("ssh-ed25519 AAAA")
    options = [str(tmp_path / o) if o == "KEY" else o for o in options]
    assert run(folder, tmp_path / "o.html", str(tmp_path / "x.tar.gz"), *options) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert str(tmp_path) not in error.replace("KEY", ""), "where a bundle lies is nobody's business"


def test_a_digest_is_a_digest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, folder / "o.html", "x", "--digests", "abc") == 2
    assert "is no SHA-256" in capsys.readouterr().err


def test_the_same_bundle_counts_once(folder: Path) -> None:
    shown = board(folder, "one", "one", skip=True)
    assert [r.reasons for r in shown.refusals] == [("the same bundle as one.tar.gz",)]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_who_signed_is_shown(folder: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    signers = tmp_path / "allowed"
    signers.write_text(f"lab@example.org {(tmp_path / 'key.pub').read_text()}")
    path = tmp_path / "signed.tar.gz"
    write_bundle(folder / "one", path, folder / "benchmarks.yaml", key=key)
    shown = make_board(
        [path], benchmarks=folder / "benchmarks.yaml", demands=Demands(signers=signers)
    )
    assert "verified, signed by lab@example.org" in shown.page
    unasked = make_board([path], benchmarks=folder / "benchmarks.yaml")
    assert "signed, the signature was not checked" in unasked.page


def test_hostile_names_are_only_text(folder: Path, tmp_path: Path) -> None:
    for name in ("benchmarks.yaml", "reference.yaml"):
        shutil.copy(folder / name, tmp_path)
    write_run(tmp_path / "bad", "x", share=0.5)
    path = next((tmp_path / "bad").rglob("result.json"))
    result = read_result(path)
    write_result(path, replace(result, weights={**result.weights, "name": HOSTILE}))
    target = path.parent.parent
    target.rename(target.with_name(f"{result.weights['digest'][:12]}-{safe_name(HOSTILE)}"))
    pack(tmp_path, "bad")
    rows = [
        replace(row, model=HOSTILE, source=HOSTILE, protocol=HOSTILE, metric=HOSTILE)
        for row in parse_file(folder / "results.csv", "ep", "x")[:1]
    ]
    (tmp_path / 'y"<b>.tar.gz').write_bytes(b"x")
    found = make_board(
        [tmp_path / "bad.tar.gz", tmp_path / 'y"<b>.tar.gz'],
        benchmarks=tmp_path / "benchmarks.yaml",
        imported=rows,
        skip=True,
    )
    assert found.page, found.refusals
    page = found.page
    assert page.count("<script>") == 1
    assert "<b>.tar" not in page
    assert all(line.isprintable() for line in page.splitlines())
    assert "onclick='x" not in page


def test_the_page_loads_nothing(folder: Path) -> None:
    page = board(folder).page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "url(" not in page
    assert "@import" not in page
    assert re.search(r"default-src 'none'|default-src &#x27;none&#x27;", page)


def test_letters_go_on_after_z() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReaderPage]:
    with reader(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    rows = parse_file(folder / "results.csv", "ep", "efficient-probing at b8f4fb8")
    path = folder / "board.html"
    path.write_text(board(folder, "one", "two", "other", imported=rows).page, encoding="utf-8")
    return path


NAMES = "[...document.querySelectorAll('#board tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].dataset.value)"
SORTED = "[...document.querySelectorAll('#board thead th')].map(h => h.getAttribute('aria-sort'))"
BUTTON = "document.querySelectorAll('#board thead button')[{}]"


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
def test_sorting_and_filtering_in_a_browser(browser: ReaderPage, page: Path) -> None:
    browser.open(page)
    browser.resize(1200)
    plain = browser.run(NAMES)
    browser.run(f"{BUTTON.format(1)}.focus()")
    assert browser.run("document.activeElement.closest('th').cellIndex") == 1
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")  # fmt: skip
    best_first = browser.run(NAMES)
    assert browser.run(SORTED)[:2] == ["none", "descending"]
    assert best_first[0].startswith("hpm (bundle A)")
    browser.run(f"{BUTTON.format(1)}.click()")
    assert browser.run(SORTED)[1] == "ascending"
    worst_first = browser.run(NAMES)
    assert worst_first[0] == "random-b16"
    # a row without a number stays below, whichever way
    assert worst_first[-1] == best_first[-1]
    assert sorted(best_first) == sorted(plain)
    browser.run("words.value = 'B/16 RANDOM'; words.dispatchEvent(new Event('input'))")
    assert sorted(browser.run(NAMES)) == ["random-b16"]
    assert browser.run("document.getElementById('count').textContent") == f"1 of {len(plain)} rows"
    browser.run("words.value = ''; words.dispatchEvent(new Event('input'))")
    browser.run("document.querySelector('input[value=imported]').click()")
    assert "MAE ViT-B/16" not in browser.run(NAMES)
    browser.run("document.querySelector('input[name=column]').click()")
    assert browser.run("document.querySelectorAll('#board thead th')[1].hidden") is True


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_is_legible(browser: ReaderPage, page: Path, width: int, dark: bool) -> None:
    browser.open(page)
    browser.resize(width, dark=dark)
    found = browser.measure()
    assert {k: found[k] for k in ("overflow", "broad", "faint", "pale", "small", "unnamed")} == {
        "overflow": 0, "broad": [], "faint": [], "pale": [], "small": [], "unnamed": [],
    }  # fmt: skip


@pytest.mark.skipif(not PROGRAM, reason=MISSING)
def test_without_scripts_it_is_a_table(browser: ReaderPage, page: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.querySelectorAll('#board button').length") == 0
    assert browser.run("document.getElementById('controls').hidden") is True
    assert browser.run("document.querySelectorAll('#board tbody tr').length") >= 9
