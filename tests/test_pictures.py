"""The pictures of README and docs: each shown, described and small; how a terminal's output is drawn."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from docs.tools.pictures import MOST_BYTES, PICTURES, shrink, table
from docs.tools.terminal import draw, pieces, wrapped
from mimbench.system.errors import UserError
from pretrain.viewing.mask_figures import MOST, _lines
from tests.support.results_folder import write_run
from tests.test_docs import PAGES, ROOT

SHOWN = re.compile(
    r'!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]+)\)|<img src="(?P<src2>[^"]+)"[^>]*?alt="(?P<alt2>[^"]*)"'
)


def shown(page: Path) -> list[tuple[Path, str]]:
    """Return the file and the text of each picture of a page."""
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"<img\b|!\[", text)) == len(SHOWN.findall(text)), f"{page}: without alt"
    found = [match.groupdict() for match in SHOWN.finditer(text)]
    return [
        ((page.parent / (f["src"] or f["src2"])).resolve(), f["alt"] or f["alt2"]) for f in found
    ]


def test_every_picture_is_there_described_and_small_and_each_is_shown() -> None:
    pictures = [picture for page in PAGES for picture in shown(page)]
    assert {path for path, _ in pictures} == {*PICTURES.iterdir()}
    for path, text in pictures:
        assert len(text) > 15, f"{path.name}: no description"
        assert path.stat().st_size < MOST_BYTES, path.name
        assert path.suffix in (".svg", ".png")


def test_readme_begins_with_a_picture_and_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:20]
    top = "\n".join(lines)
    assert "<img " in top
    assert top.index("./run_all.sh --demo") < top.index("./run_tests.sh") < top.index("## Your")


def test_pngs_have_a_palette_and_svgs_nothing_from_elsewhere() -> None:
    for path in PICTURES.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.mode == "P", path.name
                assert image.width <= 1200
        else:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"href|<script|<style|url\(", text)
            ElementTree.fromstring(text)


def test_a_terminal_is_drawn_character_by_character() -> None:
    drawn = draw(
        "mimbench table <a&b>",
        "\x1b[1mk-NN\x1b[0m  62.80\n\x1b[31mbad\x1b[39m ok\x1b[2K",
        columns=40,
    )
    tree = ElementTree.fromstring(drawn)
    rows = [
        (e.text, e.get("x"), e.get("y"), e.get("fill"))
        for e in tree.iter()
        if e.tag.endswith("text")
    ]
    texts = [text.replace("\xa0", " ") for text, *_ in rows if text]
    assert texts == ["$", "mimbench table <a&b>", "k-NN", "62.80", "bad", "ok"]
    places = {text: (float(x or 0), float(y or 0)) for text, x, y, _ in rows}
    assert places["62.80"][0] - places["k-NN"][0] == pytest.approx(6 * 8.4)
    assert places["bad"][1] - places["k-NN"][1] == 19
    assert [fill for text, *_, fill in rows if text == "bad"] == ["#ff7b72"]


def test_control_characters_are_not_drawn() -> None:
    assert [text for _, text, _ in pieces("a\x07b\x1b[5Ac")] == ["a", "b", "c"]
    hostile = draw("x", "</text><script>alert(1)</script>")
    assert "<script" not in hostile


def test_long_lines_break_where_the_screen_ends() -> None:
    assert wrapped("abcdef\n\x1b[1mabcd\x1b[0mef", 4) == ["abcd", "ef", "\x1b[1mabcd\x1b[0m", "ef"]


def test_the_table_is_read_from_a_terminal_of_a_hundred_columns(tmp_path: Path) -> None:
    for i in range(9):
        write_run(tmp_path, f"network-{i}", share=0.5 + i / 30, config={"k": 10 + i})
    lines = table(tmp_path).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("network-8" in line for line in lines) > 1
    with pytest.raises(UserError, match="no table of"):
        table(tmp_path / "nothing")


def test_a_picture_is_made_small_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    shrink(tmp_path / "noise.png", tmp_path / "small.png", width=80)
    assert (tmp_path / "small.png").stat().st_size < MOST_BYTES
    with Image.open(tmp_path / "small.png") as image:
        assert (image.width, image.height) == (80, 60)
    monkeypatch.setattr("docs.tools.pictures.MOST_BYTES", 1000)
    with pytest.raises(UserError, match="limit 1000"):
        shrink(tmp_path / "noise.png", tmp_path / "small.png")


def test_masks_go_on_below_in_lines_of_equal_length() -> None:
    labels = [f"m{i}" for i in range(2 * MOST + 1)]
    lines = _lines(labels)
    assert [label for line in lines for label in line] == labels
    assert len(lines) == 3
    assert max(map(len, lines)) - min(map(len, lines)) <= 1
    assert _lines(labels[:MOST]) == [labels[:MOST]]
