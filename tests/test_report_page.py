"""The report is one file, needs no network, escapes names, and looks right in a browser."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.results.record import read_result, write_result
from mimbench.scores.boxes import draw_detections
from mimbench.scores.figures import Figure
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.curves import LEFT, RIGHT, WIDTH, charts, read_curves
from mimbench.suite.report.page import PARTS, make_report
from mimbench.system.errors import UserError
from tests.support.results_folder import write_manifest, write_run

EVIL = 'x<script>alert("1")</script>'


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_manifest(tmp_path)
    shown = ["some picture", "three panels"]
    folder = write_run(tmp_path / "runs", "good", share=0.8, pictures=shown)
    write_run(tmp_path / "runs", EVIL, share=0.6, draw=1)
    write_run(tmp_path / "runs", "good", share=0.7, benchmark="in-ft-hpm")
    (folder / "pictures").mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "pictures" / "some picture.png")
    Image.new("RGB", (900, 300), "blue").save(folder / "pictures" / "three panels.png")
    return tmp_path


def page(out: Path) -> str:
    return make_report(out / "runs", load_manifest(out / "benchmarks.yaml"), compute=False)


def test_all_sections_are_there_and_nothing_is_fetched(out: Path) -> None:
    html = page(out)
    for anchor in PARTS:
        if anchor in ("pretraining", "layers", "masks", "neighbours"):
            continue
        assert f'id="{anchor}"' in html
        assert f'href="#{anchor}"' in html
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []
    assert "@import" not in html
    assert "http" not in html
    assert html.count('<svg class="chart"') == 4, "loss and top1 for each of two benchmarks"
    assert "digit3" in html
    assert "DINO B/16" in html
    assert "some picture" in html
    assert re.findall(r'<figure class="broad"[^>]*><img[^>]* alt="([^"]*)"', html) == [
        "three panels"
    ]
    assert "python -m mimbench eval" in html


def test_names_from_the_user_are_escaped(out: Path) -> None:
    html = page(out)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;" in html


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results in"):
        make_report(tmp_path, load_manifest(), compute=False)


def test_curves_survive_a_torn_line_and_keep_first_and_last(tmp_path: Path) -> None:
    rows = [f'{{"step": {i}, "loss": {i * i}, "name": "x", "bad": NaN}}' for i in range(3000)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*rows, '{"step": 9']))
    curves = read_curves(tmp_path)
    assert list(curves) == ["loss"]
    assert len(curves["loss"]) == 3000
    [svg] = charts([(RowLook("a", 0), curves)])
    assert svg.count(" L") < 450
    first, last = re.findall(r'class="curve"[^>]* d="M([\d.]+),\S+ .*L([\d.]+),', svg)[0]
    assert (float(first), float(last)) == (LEFT, WIDTH - RIGHT)


def test_curves_show_what_was_learnt_the_whole_loss_first() -> None:
    line = [(0.0, 1.0), (1.0, 0.5)]
    names = ("epoch", "loss_cls", "lr", "images_per_second", "total_loss", "top1", "memory_gib")
    shown = charts([(RowLook("a", 0), dict.fromkeys(names, line))])
    captions = [re.findall("<figcaption>(.*?)</figcaption>", chart)[0] for chart in shown]
    assert captions == ["total_loss", "loss_cls", "top1, %"]


def test_a_task_draws_its_own_figures(out: Path) -> None:
    path = next((out / "runs").glob("*-good/in-knn")) / "result.json"
    figures = (
        Figure(title="IoU", values={"wall": 25.5, "<sky>": 3.0}),
        Figure(title="top-1 by block", values={"1": 10.0, "12": 40.0}, kind="line"),
    )
    write_result(path, replace(read_result(path), figures=figures))
    html = page(out)
    assert "k-NN: IoU" in html
    assert "&lt;sky&gt;" in html
    assert 'aria-label="top-1 by block, %: good ends at 40"' in html


def test_unsure_detections_are_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(3)]
    true = {"image_id": 0, "category_id": 1, "bbox": [4, 4, 12, 12]}
    truth = {
        "images": images,
        "categories": [{"id": 1, "name": "<b>cat</b>"}],
        "annotations": [true],
    }
    (tmp_path / "validation.json").write_text(json.dumps(truth))
    for image in images:
        Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / image["file_name"])
    found = [(0, 0.9), (0, 0.2), *((1, 0.1 + i / 100) for i in range(5))]
    items = [
        {"image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "score": score}
        for i, score in found
    ]
    drawn = draw_detections(items, tmp_path / "validation.json", tmp_path / "pictures")
    captions = [picture.caption for picture in drawn]
    assert captions == [
        "boxes above 0.5: 1; thin: 1 true",
        "no box above 0.5; the 3 surest of 5",
        "nothing detected",
    ]
