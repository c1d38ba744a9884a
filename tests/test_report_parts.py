"""Parts of the report: cost, worries, classes, confusions, pretraining; each from what a run recorded."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.results.record import NOT_AUDITED, Provenance, Result, read_result, write_result
from mimbench.scores.figures import Figure
from mimbench.scores.hits import Hits
from mimbench.suite.report.classes import ClassScores, scores_of
from mimbench.suite.report.colours import RowLook
from mimbench.suite.report.computed import images_to_mask
from mimbench.suite.report.confusions import confusions, draw_confusion
from mimbench.suite.report.costs import costs
from mimbench.suite.report.gathered import Gathered, gather
from mimbench.suite.report.learning import layers, pretraining, read_timeline
from mimbench.suite.report.worries import show_worries, warnings_in, worries_of
from mimbench.system.logs import MarkedWarnings
from tests.support.results_folder import SOURCE, write_manifest, write_run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_manifest(tmp_path)
    for name, share in (("good", 0.8), ("random-B-16", 0.3)):
        for benchmark in ("in-knn", "in-ft-hpm"):
            write_run(tmp_path / "runs", name, share=share, benchmark=benchmark)
    sound = {"faults": [], "not_tried": [], "digest": ""}
    next((tmp_path / "runs").glob("*-good")).joinpath("canary.json").write_text(json.dumps(sound))
    return tmp_path


def gathered(out: Path) -> Gathered:
    return gather(out / "runs", load_manifest(out / "benchmarks.yaml"))


def change(out: Path, row: str = "good", benchmark: str = "in-knn", **fields: Any) -> Path:
    path = next((out / "runs").glob(f"*-{row}/{benchmark}")) / "result.json"
    write_result(path, replace(read_result(path), **fields))
    return path.parent


def worries(out: Path) -> list[str]:
    found = gathered(out)
    return [f"{w.level}: {w.what} | {w.detail}" for w in worries_of(found.table, found.runs)]


def test_nothing_worrying_is_said_as_such(out: Path) -> None:
    assert worries(out) == []
    assert "every cell has a number" in show_worries([])[0]


def failed(out: Path) -> None:
    change(
        out, status="failed", error="RuntimeError: out of memory\nmore", metrics={}, intervals={}
    )


def faulty(out: Path) -> None:
    path = next((out / "runs").glob("*-good")) / "canary.json"
    path.write_text(json.dumps({"faults": ["blocks are shuffled"], "not_tried": ["red and blue"]}))


def unchecked(out: Path) -> None:
    (next((out / "runs").glob("*-good")) / "canary.json").write_text("[not json")


def missing(out: Path) -> None:
    (next((out / "runs").glob("*-good/in-knn")) / "result.json").unlink()


def no_better(out: Path) -> None:
    change(out, metrics={"top1": 30.0, "top5": 50.0})


def worse(out: Path) -> None:
    change(out, metrics={"top1": 3.0, "top5": 50.0})


def changed(out: Path) -> None:
    change(out, overrides={"k": 10})


def short(out: Path) -> None:
    change(out, ran={"images": 50})


def unaudited(out: Path) -> None:
    path = next((out / "runs").glob("*-good/in-knn")) / "result.json"
    change(out, weights={**read_result(path).weights, "audit": NOT_AUDITED})


def no_interval(out: Path) -> None:
    change(out, intervals={})


def dirty(out: Path) -> None:
    change(out, provenance=Provenance(**{**vars(SOURCE), "dirty": True, "commit": "beef"}))


def warned(out: Path) -> None:
    folder = change(out)
    line = "08:00:00 warning: half the memory was asked for\n"
    (folder / "log.txt").write_text(f"08:00:00 fine\n{line}{line}UserWarning: not ours\n")


def quick(out: Path) -> None:
    change(out, profile="quick")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (failed, "fault: in-knn of good failed | RuntimeError: out of memory"),
        (faulty, "fault: the canary on good: blocks are shuffled | "),
        (faulty, "look at: the canary had no time for all of good | red and blue"),
        (unchecked, "look at: the canary did not check good | "),
        (missing, "look at: good did not run 1 benchmark | k-NN"),
        (
            no_better,
            "look at: good cannot be distinguished from random weights in 1 benchmark | k-NN",
        ),
        (worse, "look at: good is worse than random weights in 1 benchmark | k-NN"),
        (changed, "look at: changed recipe: k=10 | in-knn"),
        (short, "look at: k-NN did not run as its protocol says | images 50"),
        (unaudited, "look at: good is not audited: nobody accounted for its tensors | "),
        (no_interval, "look at: no interval for 1 benchmark | k-NN"),
        (dirty, "look at: 1 cells ran from code with changes that no commit holds | "),
        (dirty, "look at: cells come from 2 commits | beef, c0ffee"),
        (warned, "look at: half the memory was asked for | log of in-knn of good"),
        (
            quick,
            "look at: [quick] cheaper recipes of our own: no published row stands beside them | ",
        ),
    ],
)
def test_each_worry_is_found(out: Path, fault: Any, expected: str) -> None:
    fault(out)
    found = worries(out)
    assert expected in found
    assert [w.startswith("fault") for w in found] == sorted(
        (w.startswith("fault") for w in found), reverse=True
    ), "faults come first"


def test_our_log_marks_its_warnings(tmp_path: Path) -> None:
    shown = MarkedWarnings("%(asctime)s %(mark)s%(message)s", "%H:%M:%S")
    levels = {"took": logging.INFO, "no room": logging.WARNING, "broke": logging.ERROR}
    lines = [
        shown.format(logging.LogRecord("x", level, "", 0, words, (), None))
        for words, level in levels.items()
    ]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert warnings_in(tmp_path / "log.txt") == ["no room"]
    assert warnings_in(tmp_path / "none.txt") == []


def test_costs_are_those_of_the_results(out: Path) -> None:
    change(
        out, provenance=Provenance(**{**vars(SOURCE), "seconds": 90.0, "peak_memory_mb": 2048.0})
    )
    words, bars = costs(gathered(out))
    assert "4 cells took 1m39s (good 1m33s, random-B-16 6s)" in words
    assert "The longest: k-NN of good, 1m30s, 91 % of it" in words
    assert "2.0 GB" in words
    assert bars.count('class="bar"') == 4
    assert "width:100.0%" in bars
    assert "width:3.3%" in bars


def test_classes_are_sorted_by_what_is_gained_over_random_weights() -> None:
    mine, other, twin = RowLook("a", 0), RowLook("b", 1), RowLook("random", 2, twin=True)
    values = {
        mine: {"cat": 50.0, "dog": 90.0, "cow": 10.0},
        other: {"cat": 99.0},
        twin: {"cat": 40.0, "dog": 20.0, "cow": 30.0, "owl": 1.0},
    }
    scores = ClassScores(title="IoU", looks=list(values), values=values)
    assert scores.order() == ["dog", "cat", "cow", "owl"]
    assert [scores.gap(name) for name in ("dog", "cat", "cow", "owl")] == [70.0, 10.0, -20.0, None]
    alone = ClassScores(title="IoU", looks=[mine], values={mine: values[mine]})
    assert alone.order() == ["dog", "cat", "cow"]
    assert alone.gap("dog") is None


def test_one_plot_holds_all_rows_of_a_benchmark(out: Path) -> None:
    found = scores_of(gathered(out))
    assert [scores.title for scores in found] == ["k-NN", "Fine-tune"]
    assert [[look.label for look in scores.looks] for scores in found] == [
        ["good", "random-B-16"]
    ] * 2


def test_confusions_tell_what_a_class_was_taken_for(out: Path) -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    best = np.array([0, 1, 1, 7, 1, 1])
    top5 = np.stack([best, *(np.full(6, -1) for _ in range(4))], axis=1)
    names = tuple(f"{'cat' if label == 0 else 'dog'}/{i}.png" for i, label in enumerate(labels))
    taken = Hits(images=names, labels=labels, top5=top5).taken_for()
    assert taken == {"cat": {"cat": 25.0, "dog": 50.0, "class 7": 25.0}, "dog": {"dog": 100.0}}
    shown = draw_confusion("k-NN", RowLook("a", 0), taken)
    assert shown.index(">cat<") < shown.index(">dog</th>"), "the worst class comes first"
    assert "<b>dog</b> (50 %), <b>class 7</b> (25 %)" in shown
    [grid] = confusions(gathered(out))
    assert grid.count("<table") == 2, "of the checkpoint, not of random weights"


def test_layers_with_titles_that_begin_alike_share_an_axis(out: Path) -> None:
    figures = [
        Figure(title=f"k-NN: {kind}, by block", values={"1": low, "2": 50.0}, kind="line")
        for kind, low in (("cls", 0.0), ("avg", 40.0))
    ]
    change(out, figures=figures)
    shown = layers(gathered(out))[1]
    assert shown.count(">0<") == shown.count(">20<") == 2
    assert shown.count(">block<") == 2


def test_pretraining_is_found_beside_the_checkpoint(out: Path) -> None:
    run = out / "runs" / "pretrain"
    (run / "timeline").mkdir(parents=True)
    steps = [{"step": i, "loss": 1.0 / (1 + i)} for i in range(4)]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(x) for x in steps))
    states = [
        {"step": s, "loss": None, "scores": {"in-knn top1": v}, "masks": {"step": s, "clumping": v}}
        for s, v in ((20, 50.0), (10, 40.0))
    ]
    (run / "timeline" / "timeline.json").write_text(json.dumps([*states, "odd", {"step": "x"}]))
    assert read_timeline(run / "timeline" / "timeline.json") == {
        "in-knn top1": [(10.0, 40.0), (20.0, 50.0)],
        "masks: clumping": [(10.0, 40.0), (20.0, 50.0)],
    }
    assert pretraining(gathered(out)) == []
    for path in (out / "runs").glob("*-good/*/config.yaml"):
        gone = str(path.parent / "gone.pth")
        path.write_text(path.read_text().replace(gone, str(run / "encoder.safetensors")))
    shown = "".join(pretraining(gathered(out)))
    assert shown.count('class="chart"') == 3
    (run / "timeline" / "timeline.json").write_text("{")
    assert "".join(pretraining(gathered(out))).count('class="chart"') == 1


def test_rows_keep_their_looks(out: Path) -> None:
    """The table, the overview and every figure number the rows alike, whatever ran first."""
    write_run(out / "runs", "zzz", share=0.5)
    missing(out)
    found = gathered(out)
    labels = [row.label for row in found.table.rows if row.kind == "measured"]
    assert [look.label for look in found.looks.values()] == labels
    assert [look.index for look in found.looks.values()] == list(range(len(labels)))
    result: Result = found.done[0][1]
    assert found.look(result).label == result.weights["name"]


def test_masks_are_drawn_on_images_as_large_as_the_models_own(tmp_path: Path) -> None:
    for folder, side in (("cards/val/a", 32), ("coco/val2017", 128)):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(9):
            Image.new("RGB", (side, side)).save(tmp_path / folder / f"{i}.png")
        (tmp_path / folder / "notes.txt").write_text("no image")
    cards, scenes = tmp_path / "cards", tmp_path / "coco"
    small, large = (images_to_mask([cards, scenes], size) for size in (32, 64))
    assert [path.name for path in small] == ["0.png", "2.png", "4.png", "6.png"]
    assert {path.parent for path in small} == {cards / "val" / "a"}
    assert {path.parent for path in large} == {scenes / "val2017"}
    none_large = images_to_mask([cards, scenes], 224)
    assert {path.parent for path in none_large} == {scenes / "val2017"}, "the largest there are"
