"""`compare`: statistics under one protocol, the differing fields under two."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import Effect, load_manifest
from mimbench.benchmarks.preflight import RecipeReport
from mimbench.commands import compare
from mimbench.data.digest import DataDigest
from mimbench.results.record import read_result, write_result
from mimbench.system.errors import UserError
from mimbench.tables import recipes
from mimbench.tables.comparison import differences, find_published, group_of
from tests.support.results_folder import write_manifest, write_run

TASK = """
from dataclasses import dataclass, field
from pathlib import Path
from mimbench.task import Machine, TaskResult
VERSION = 1
MAIN_METRIC = "top1"
@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path
    k: int = 20
    temperature: float = 0.07
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
def run(weights, config, out):
    return TaskResult(metrics={"top1": 1.0})
"""


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_task.py").write_text(TASK)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    write_manifest(tmp_path)
    write_run(tmp_path / "runs", "good", share=0.8)
    write_run(tmp_path / "runs", "bad", share=0.6, draw=1)
    write_run(tmp_path / "runs", "twin", share=0.8, draw=2)
    write_run(tmp_path / "runs", "other", share=0.8, config={"k": 10})
    return tmp_path


def said(out: Path, a: str, b: str, capsys: pytest.CaptureFixture[str]) -> str:
    args = argparse.Namespace(
        a=a, b=b, results=out / "runs", benchmarks=out / "benchmarks.yaml", imported=[]
    )
    assert compare.main(args) == 0
    return capsys.readouterr().out


def test_two_rows_under_one_protocol(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(out, "good", "bad", capsys)
    assert "in-knn: good is better than bad (good - bad = +" in text
    assert "McNemar p = " in text
    assert "spread over seeds" not in text, "nothing is trained"
    assert "in-knn: good is better than bad (bad - good = -" in said(out, "bad", "good", capsys)
    assert "no difference shown between good and twin" in said(out, "good", "twin", capsys)


def test_two_rows_under_two_protocols_list_the_field_and_what_is_known(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(out, "good", "other", capsys)
    assert "not comparable" in text
    assert "    k: 20 | 10\n      known: k = 20 is usually best [DINO paper]" in text
    assert "temperature" not in text


def test_a_published_row_with_the_same_and_with_another_protocol(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = said(out, "good", "HPM 800", capsys)
    assert "50.00 published for HPM B/16" in same
    assert "same protocol (in-knn)" in same
    other = said(out, "other", "DINO", capsys)
    assert "76.10 published for DINO B/16 [DINO README]" in other
    assert "    k: 10 | 20" in other


def test_a_published_recipe_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(queries: Any, data: None, *, models: list[str]) -> list[RecipeReport]:
        asked.append((queries[0].task, models))
        return [RecipeReport(canonical={"k": 20}, resolved=({"lr": 0.1},))]

    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(recipes, "preflight", answer)
    manifest = load_manifest()
    for model in ("B/16", "B/16", "L/16"):
        assert recipes.published_config("in-knn", manifest, model) == {"k": 20, "lr": 0.1}
    assert asked == [("knn.classify", ["B/16"]), ("knn.classify", ["L/16"])]
    assert {"knn", "mimbench", "transfer"} <= {
        name.split("/")[0] for name, *_ in recipes.code_state()
    }
    monkeypatch.setattr(recipes, "code_state", lambda: recipes.ROOT.name)
    recipes.published_config("in-knn", manifest, "B/16")
    assert len(asked) == 3, "other code may mean another recipe"


def test_unknown_rows_name_the_nearest(out: Path) -> None:
    args = argparse.Namespace(
        a="goof", b="bad", results=out / "runs", benchmarks=out / "benchmarks.yaml", imported=[]
    )
    with pytest.raises(UserError, match="no finished results of 'goof'; did you mean 'good'"):
        compare.main(args)


def test_different_test_images_are_refused(out: Path) -> None:
    write_run(out / "runs", "short", share=0.8, images=500)
    args = argparse.Namespace(
        a="good", b="short", results=out / "runs", benchmarks=out / "benchmarks.yaml", imported=[]
    )
    with pytest.raises(UserError, match="saw different test images"):
        compare.main(args)


def test_published_rows_are_found_by_method_model_and_epochs() -> None:
    references = load_manifest().references
    assert {r.epochs for r in find_published(references, "HPM")} == {200, 800, None}
    assert {r.value for r in find_published(references, "HPM B/16 800") if r.metric == "top1"} == {
        84.2
    }
    assert find_published(references, "No such method") == []
    assert group_of("coco-cascade-12", load_manifest()) == "detection"
    assert group_of("in-10pct-linear", load_manifest()) == "lowshot"


@pytest.mark.parametrize("name", ["800", "runs/a", "B/16", "800 300", ""])
def test_names_that_are_no_published_rows_come_to_an_end(name: str) -> None:
    """The whole name was taken for an epoch count again and again."""
    assert find_published(load_manifest().references, name) == []


def test_nested_fields_differ_by_their_full_name() -> None:
    effects = [Effect(fields=("scale",), known="x", source="y", groups=("linear",))]
    [found] = differences(
        {"crop": {"scale": 1, "flip": 0}}, {"crop": {"scale": 2, "flip": 0}}, "linear", effects
    )
    assert (found.field, found.a, found.b, found.known) == ("crop.scale", 1, 2, ("x [y]",))
    assert differences({"a": 1}, {"a": 1}, "knn", []) == []


def test_a_trained_pair_of_one_seed_each_is_compared_on_these_images_only(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, share in (("tuned", 0.8), ("other-tuned", 0.6)):
        write_run(out / "runs", name, share=share, benchmark="in-ft-hpm", trains=True)
        write_run(out / "runs", name, share=share)
    text = said(out, "tuned", "other-tuned", capsys)
    assert "in-ft-hpm: on these test images tuned does better than other-tuned" in text
    assert "spread over seeds not measured" in text
    assert "in-knn: tuned is better than other-tuned" in text
    assert text.count("by Holm over 2 verdicts") == 2


def test_a_default_spelled_out_is_the_same_recipe(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A field that the model's size decides was compared as it was written: 0.65 differed from null."""
    paths = {
        name: next((out / "runs").glob(f"*-{name}/*/result.json")) for name in ("good", "other")
    }
    decided = {"k": 20, "layer_decay": 0.65}
    for name, spelled in (("good", None), ("other", 0.65)):
        result = read_result(paths[name])
        config = {**result.config, "layer_decay": spelled}
        write_result(paths[name], replace(result, config=config, resolved=decided))
    assert read_result(paths["good"]).protocol != read_result(paths["other"]).protocol
    assert "in-knn: no difference shown between good and other" in said(
        out, "good", "other", capsys
    )
    result = read_result(paths["other"])
    write_result(paths["other"], replace(result, resolved={**decided, "layer_decay": 0.75}))
    text = said(out, "good", "other", capsys)
    assert "not comparable" in text
    assert "layer_decay: 0.65 | 0.75" in text


def test_the_verdict_follows_the_direction_of_the_metric(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "bad"):
        [path] = (out / "runs").glob(f"{name.encode().hex()[:12]}*/in-knn/result.json")
        write_result(path, replace(read_result(path), lower_is_better=True))
    assert "in-knn: bad is better than good (good - bad = +" in said(out, "good", "bad", capsys)


def test_runs_over_other_data_are_not_compared(out: Path) -> None:
    for name, digest in (("seen", "aaaa"), ("unseen", "bbbb")):
        folder = write_run(out / "runs", name, share=0.8)
        result = read_result(folder / "result.json")
        write_result(folder / "result.json", replace(result, data_digest=DataDigest(digest=digest)))
    args = argparse.Namespace(
        a="seen", b="unseen", results=out / "runs", benchmarks=out / "benchmarks.yaml", imported=[]
    )
    with pytest.raises(UserError, match=r"saw different data \(aaaa, bbbb\)"):
        compare.main(args)
