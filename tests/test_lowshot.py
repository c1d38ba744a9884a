"""Few labels: fixed lists, files, spread over draws, k-NN and logistic regression."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mimbench.benchmarks.evaluation import intervals
from mimbench.data.subsets import (
    Subset,
    draw_fraction,
    draw_per_class,
    first_per_class,
    hold_out,
    read_list,
)
from mimbench.features.extract import extract
from mimbench.scores.outcomes import faithful
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, random_weights
from transfer.classification import lowshot
from transfer.classification.lowshot import Config, spread

LABELS = np.repeat(np.arange(10), 100)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def config(data: Path, **changes: Any) -> Config:
    plain = {
        "data": str(data), "image_size": 32, "resize": None, "choice": "avg", "k": 3,
        "grid": {"lowest": 1e-1, "highest": 1e3, "steps": 3, "holdout": 0.2, "criterion": "loss"},
        "machine": {"device": "cpu", "workers": 0, "max_batch": 64},
    }  # fmt: skip
    return from_mapping(Config, {**plain, **changes})


def test_draws_are_fixed_balanced_and_differ():
    for pick in (
        lambda d: draw_per_class(LABELS, 5, draw=d),
        lambda d: draw_fraction(LABELS, 0.05, draw=d),
    ):
        one, same, other = pick(0), pick(0), pick(1)
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert np.bincount(LABELS[one]).tolist() == [5] * 10
        assert len(set(one)) == 50
    # these lists are part of the protocol: a change of them raises lowshot.VERSION
    assert draw_per_class(LABELS, 1, draw=0).tolist()[:4] == [52, 188, 299, 355]
    assert first_per_class(LABELS, 2, offset=7).tolist()[:4] == [7, 8, 107, 108]


def test_shares_keep_every_class():
    labels = np.array([0] * 200 + [1] * 3)
    assert np.bincount(labels[draw_fraction(labels, 0.01, draw=0)]).tolist() == [2, 1]
    kept, held = hold_out(labels, 0.1, seed=0)
    assert sorted([*kept, *held]) == list(range(203))
    assert np.bincount(labels[held]).tolist() == [20, 1]
    single = np.array([0, 1, 1])
    assert 0 in hold_out(single, 0.5, seed=0)[0]


def test_lists_may_be_files(painted_images: Callable[..., Path], tmp_path: Path):
    data = painted_images(tmp_path / "data", train=6)
    train, _ = config(data, per_class=1).images()
    listed = tmp_path / "1percent.txt"
    listed.write_text("train_0_002.png\nclass_3/train_3_005.png\n\ntrain_1_000.png\n")
    assert [train.names[i] for i in read_list(listed, train)] == [
        "class_0/train_0_002.png", "class_1/train_1_000.png", "class_3/train_3_005.png",
    ]  # fmt: skip
    assert len(Subset(file=listed).of(train)) == 3
    listed.write_text("train_0_002.png\nn01440764_10026.JPEG\n")
    with pytest.raises(UserError, match=r"1 of them not in .*n01440764_10026\.JPEG"):
        read_list(listed, train)
    (data / "train/class_1/train_0_002.png").write_bytes(
        (data / "train/class_0/train_0_002.png").read_bytes()
    )
    doubled, _ = config(data, per_class=1).images()
    listed.write_text("train_0_002.png\n")
    with pytest.raises(UserError, match="name of several images"):
        read_list(listed, doubled)


def test_subsets_of_other_tasks():
    labels = np.repeat([0, 1], 10)
    with pytest.raises(ValueError, match="per_class and by fraction"):
        Subset(per_class=1, fraction=0.5)
    assert first_per_class(labels, 3).tolist() == [0, 1, 2, 10, 11, 12]
    with pytest.raises(UserError, match="class 0 has 10 images, fewer than the 11"):
        first_per_class(labels, 1, offset=10)
    with pytest.raises(UserError, match="within 0 and 1"):
        draw_fraction(labels, 1.5, draw=0)


def test_mean_and_spread_over_draws(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=30, val=25)
    weights = random_weights(small_spec, 0)
    result = lowshot.run(weights, config(data, per_class=5), tmp_path / "out")
    metrics, notes = result.metrics, result.notes
    assert result.draws == 5
    assert notes["draws"] == [f"offset {o}" for o in (0, 5, 10, 15, 20)]
    tops = [notes[f"knn, offset {o}"]["top1"] for o in (0, 5, 10, 15, 20)]
    assert metrics["top1"] == pytest.approx(np.mean(tops))
    assert metrics["top1_sd"] == pytest.approx(np.std(tops, ddof=1))
    # the outcomes of every draw are kept: the mean and its spread follow from them
    found = faithful(result.outcomes, metrics)
    assert found["top1"].whole() == pytest.approx(metrics["top1"])
    assert found["top1_sd"].whole() == pytest.approx(metrics["top1_sd"])
    halves = intervals(result)
    assert 0 < halves["top1"].half < 10
    assert set(halves) == {"top1", "top1_sd"}
    # chance is 25
    assert metrics["knn_top1"] > 45
    assert metrics["logreg_top1"] > 45
    assert notes["logreg, offset 5"]["chosen_on"] == "held-out images"
    # the same numbers from the bank of all training images
    settings = config(data, per_class=5)
    train, _ = settings.images()
    extract(weights, train, settings.bank(), settings.machine)
    assert lowshot.run(weights, settings, tmp_path / "again").metrics == pytest.approx(
        metrics, abs=1.01
    )


def test_one_image_a_class(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=22, val=10)
    weights = random_weights(small_spec, 0)
    result = lowshot.run(weights, config(data, per_class=1), tmp_path / "out")
    assert result.notes["knn, offset 20"]["train_images"] == 4
    assert "a class has 1 images" in result.notes["logreg, offset 0"]["chosen_on"]
    assert result.metrics["top1"] > 25


def test_fractions_and_random_order(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=20, val=10)
    weights = random_weights(small_spec, 0)
    share = config(data, fraction=0.25, draws=2, methods=["logreg"])
    metrics = lowshot.run(weights, share, tmp_path / "share").metrics
    assert metrics["top1"] == metrics["logreg_top1"]
    assert "knn_top1" not in metrics
    random = config(data, per_class=5, order="random", draws=2, methods=["knn"])
    assert lowshot.run(weights, random, tmp_path / "random").metrics["top1_sd"] >= 0


def test_shuffled_labels_give_chance(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=30, val=50)
    settings = config(data, per_class=5)
    train, val = settings.images()
    bank = extract(random_weights(small_spec, 0), val, settings.bank(), settings.machine)
    rng = np.random.default_rng(0)
    features = bank.load("avg")
    labels = rng.integers(0, 4, len(val))
    half = len(val) // 2
    ranked = lowshot.vote(
        features[:half], labels[:half], features[half:], 4, replace(settings, k=20)
    )
    hits = 100 * float((ranked[:, 0] == torch.from_numpy(labels[half:])).float().mean())
    # 100 images, chance 25: three standard deviations
    assert 12 < hits < 38
    assert len(train) == 120


def test_requests_that_make_no_sense(tmp_path: Path):
    for changes, match in (
        ({}, "exactly one of per_class"),
        ({"per_class": 1, "fraction": 0.1}, "exactly one of per_class"),
        ({"per_class": 1, "draws": 1}, "a spread takes at least 2"),
    ):
        with pytest.raises(UserError, match=match):
            config(tmp_path, **changes)
    assert "knn_top1_sd" not in spread("knn", [(40.0, 80.0)]), "not measured is absent, never 0"
