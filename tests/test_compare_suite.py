"""The comparison: every arm loads, runs go to their end, and the table says what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimbench.benchmarks.manifest import load_manifest
from mimbench.checkpoints.files import read_weights
from mimbench.system.config import parse_overrides
from pretrain import masks
from pretrain.compare.arms import ARMS, ORACLES, TWIN, arms_of
from pretrain.compare.suite import ComparisonPlan, compare, main, prepare, table
from pretrain.objectives.learner import Pretraining
from tests.support.tiny_pretrain import NETWORK

TINY = (
    *NETWORK,
    "encoder.depth=1",
    "training.batch=8",
    "training.steps=2",
    "training.save_every=1",
)


def plan_for(out: Path, **more: Any) -> ComparisonPlan:
    """Return a comparison of everything in two steps, scored by k-NN."""
    settings: dict[str, Any] = {
        "seeds": 1,
        "benchmarks": ["in-knn"],
        "arms": ["hard (HPM)", TWIN],
        "overrides": TINY,
        "device": "cpu",
    }
    return ComparisonPlan(out=out, **{**settings, **more})


def test_every_strategy_is_an_arm_and_hides_as_much(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    names = set()
    for arm, overrides in ARMS.items():
        config = plan.config(arm, 0)
        names.add(config.mask["name"])
        assert masks.build(config.mask).count(16) == 8
        assert parse_overrides(list(overrides))["mask"]["name"] in masks.available()
        assert config.training.seed == 0
    assert names == set(masks.available()) - {"boxes", "segments"}
    assert len({plan.folder(arm, 0) for arm in (*ARMS, TWIN)}) == len(ARMS) + 1


def test_oracles_run_on_annotated_images_only(tmp_path: Path) -> None:
    assert not set(arms_of((), ())) & set(ORACLES)
    assert arms_of((), ("oracle",)) == []
    for override in ("data.name=scenes", "data.annotations=/somewhere.json"):
        assert set(arms_of((override,), ("oracle",))) == set(ORACLES)
        plan = plan_for(tmp_path, overrides=[*TINY, override])
        orders = {
            (c.mask["name"], c.mask.get("order"), c.labels)
            for c in (plan.config(arm, 0) for arm in ORACLES)
        }
        assert len(orders) == 4
        assert {kind for _, _, kind in orders} == {"boxes", "segments"}


def test_hpm_is_taken_apart(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    parts = {
        arm: (plan.config(arm, 1).mask["name"], plan.config(arm, 1).objective.predict_loss)
        for arm in ("random (MAE)", "random, loss prediction only", "hard (HPM)")
    }
    assert list(parts.values()) == [
        ("random", "none"),
        ("random", "relative"),
        ("hard", "relative"),
    ]


def test_table_of_means_and_spreads(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, benchmarks=["knn", "ap"])
    rows = table(plan, {"one": {0: {"knn": 10.0}, 2: {"knn": 20.0, "ap": 3.0}}, "two": {}})
    assert rows.splitlines()[2:] == ["| one | 2 | 15.0 ± 7.1 | 3.0 (1) |", "| two | 0 | - | - |"]


@pytest.mark.parametrize("moment", ["after_update", "saved"])
def test_an_interrupted_comparison_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Stopped within training, or between the last state and what is handed over."""
    plan, done = plan_for(tmp_path), plan_for(tmp_path, done=True)
    original, left = getattr(Pretraining, moment), [2 if moment == "after_update" else 1]

    def stop(*args: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, moment, stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(plan, "hard (HPM)", 0)
    assert (plan.folder("hard (HPM)", 0) / "checkpoints" / "last.pt").is_file()
    assert prepare(done, "hard (HPM)", 0) is None
    path = prepare(plan, "hard (HPM)", 0)
    assert path is not None
    assert read_weights(path).spec.embed_dim == 24
    assert prepare(done, "hard (HPM)", 0) == path


def test_another_budget_in_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(plan_for(tmp_path), "hard (HPM)", 0)
    changes = [f"--set={item}" for item in (*TINY, "optimizer.base_lr=1.0e-3")]
    arguments = ["--out", str(tmp_path), "--arms", "HPM", "--device", "cpu", *changes]
    assert main(arguments) == 2
    assert "another configuration" in capsys.readouterr().err


def test_what_is_not_done_is_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "benchmarks.yaml"
    path.write_text("defaults: {paper: [], quick: [], demo: []}\nbenchmarks: {}\n")
    arguments = ["--out", str(tmp_path), "--done", "--benchmarks", str(path)]
    assert main(arguments) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(ARMS) + 1
    assert all(row.split("|")[2].strip() == "0" for row in rows[2:])
    assert not (tmp_path / "pretrain").exists()
    assert main([*arguments, "--arms", "nonsense"]) == 2
    assert "no arm is called 'nonsense'" in capsys.readouterr().err


@pytest.mark.slow
def test_numbers_come_from_the_suites_cells(tmp_path: Path) -> None:
    """A whole comparison by k-NN on the sample data; a repetition computes nothing."""
    plan, manifest = plan_for(tmp_path), load_manifest()
    scores = compare(plan, manifest)
    assert {arm: set(rows) for arm, rows in scores.items()} == {"hard (HPM)": {0}, TWIN: {0}}
    kept = json.loads((tmp_path / "compare.json").read_text())
    assert kept["scores"]["hard (HPM)"]["0"] == scores["hard (HPM)"][0]
    assert 0 < scores[TWIN][0]["in-knn"] < 100
    again = compare(plan_for(tmp_path, done=True), manifest)
    assert again == scores
