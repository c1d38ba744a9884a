"""The k-NN task from images to outcomes: every option, pieces, memory, half storage, chance."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knn import classify, vote
from knn.classify import Config
from knn.vote import VoteConfig, predict
from mimbench.features.search import search, search_approximate
from mimbench.scores.metrics import rank_classes
from mimbench.scores.neighbours import Neighbours, weighted_votes
from mimbench.system.config import from_mapping
from mimbench.system.memory import Halving
from mimbench.vit.weights import VitSpec, random_weights


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def config(data: Path, **changes: Any) -> Config:
    plain = {
        "data": str(data), "image_size": 32, "resize": None, "choices": ["avg", "cls"],
        "k": [1, 5, 20], "main_k": 5, "temperature": [0.07, 0.2],
        "machine": {"device": "cpu", "workers": 0, "max_batch": 64},
    }  # fmt: skip
    return from_mapping(Config, {**plain, **changes})


def plain_votes(similarity: torch.Tensor, labels: torch.Tensor, k: int, t: float, classes: int):
    """All votes of all classes, ranked with the lower class first."""
    votes = torch.zeros(len(labels), classes)
    weights = ((similarity - similarity[:, :1]) / t).exp()
    votes.scatter_add_(1, labels[:, :k], weights[:, :k])
    return rank_classes(votes)


@pytest.mark.parametrize(("classes", "present"), [(1000, 1000), (1000, 3), (40, 6), (7, 7)])
def test_looking_at_the_neighbours_classes_alone_ranks_like_all(classes: int, present: int):
    generator = torch.Generator().manual_seed(classes + present)
    # far away neighbours have votes of exactly 0, as classes without any
    similarity = 9 * torch.rand(80, 20, generator=generator).sort(1, descending=True).values
    labels = torch.randint(classes - present, classes, (80, 20), generator=generator)
    found = Neighbours(similarity=similarity, labels=labels)
    for k, ranked in weighted_votes(
        found, ks=[1, 4, 20], temperature=0.07, classes=classes
    ).items():
        assert torch.equal(ranked, plain_votes(similarity, labels, k, 0.07, classes)), k


def test_every_option_reaches_the_number(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=15, val=20)
    weights = random_weights(small_spec, 0)
    result = classify.run(weights, config(data), tmp_path / "out")
    metrics = result.metrics
    assert {f"{c}_k{k}_T{t}_top{n}" for c in ("avg", "cls") for k in (1, 5, 20)
            for t in ("0.07", "0.2") for n in (1, 5)} < set(metrics)  # fmt: skip
    # chance is 25, a standard deviation 5
    assert metrics["top1"] == metrics["avg_k5_T0.07_top1"] > 45
    [outcomes] = result.outcomes
    top1, *_ = outcomes.statistics()
    assert (top1.metric, top1.whole()) == ("top1", metrics["top1"])
    other = classify.run(weights, config(data, choices=["cls", "avg"]), tmp_path / "cls").metrics
    assert other["top1"] == metrics["cls_k5_T0.07_top1"]
    raw = {m: config(data, normalise=False, metric=m) for m in ("ip", "l2")}
    tops = {m: classify.run(weights, c, tmp_path / m).metrics for m, c in raw.items()}
    assert tops["ip"] != tops["l2"]
    assert tops["ip"] != metrics
    unit = classify.run(weights, config(data, metric="l2"), tmp_path / "unit").metrics
    assert unit == pytest.approx(metrics, abs=2.6)


def test_an_approximate_index_takes_the_same_options(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=40, val=10)
    weights = random_weights(small_spec, 0)
    for options in ({}, {"normalise": False, "metric": "l2"}):
        exact = classify.run(
            weights, config(data, **options), tmp_path / f"exact{len(options)}"
        ).metrics
        index = {"kind": "ivf", "lists": 4, "probes": 4}
        out = tmp_path / f"ivf{len(options)}"
        found = classify.run(weights, config(data, index=index, **options), out)
        assert found.metrics == pytest.approx(exact)
        assert (found.notes["recall_at_20"], found.notes["recall_queries"]) == (100, 40)


def test_recall_is_asked_of_the_whole_range_of_queries(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of so few, of every one: the first, the last and each in between once."""
    asked = []

    def note(index: Any, queries: Any, k: int, **options: Any) -> Any:
        asked.append(queries)
        return search_approximate(index, queries, k, **options)

    monkeypatch.setattr(classify, "search_approximate", note)
    data = painted_images(tmp_path / "data", train=40, val=10)
    index = {"kind": "ivf", "lists": 4, "probes": 4}
    found = classify.run(random_weights(small_spec, 0), config(data, index=index), tmp_path / "out")
    assert (found.notes["bank_images"], found.notes["images"]) == (160, 40)
    assert (found.notes["queries_at_once"], found.notes["memory_halved"]) == (4096, False)
    recalled, voted = asked[0], np.concatenate(asked[1:])
    assert len(recalled) == 40
    np.testing.assert_array_equal(recalled, voted[:40])


def test_pieces_and_halving_change_nothing():
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (200, 53))
    labels = rng.integers(0, 30, 200)
    ballot = VoteConfig(classes=30, ks=[3, 10], temperatures=[0.1])
    sizes = []

    def find(q: Any, k: int):
        return search(bank, q, k)

    def tight(q: Any, k: int):
        if len(q) > 5:
            raise RuntimeError("Error in StandardGpuResources: out of memory")
        sizes.append(len(q))
        return find(q, k)

    whole = predict(find, labels, queries, ballot)
    room = Halving(size=32)
    pieces = predict(tight, labels, queries, ballot, room=room)
    assert (room.size, room.halved, set(sizes)) == (4, True, {4, 1})
    for key, ranked in whole.items():
        assert torch.equal(ranked, pieces[key])


def test_what_half_storage_does_is_said(
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(vote, "CPU_QUERIES", 16)
    data = painted_images(tmp_path / "data", train=15, val=20)
    weights = random_weights(small_spec, 0)
    exact = classify.run(weights, config(data), tmp_path / "fp32").metrics
    half = classify.run(weights, config(data, storage="bf16"), tmp_path / "bf16")
    effect = half.notes["storage_effect"]
    # the set is small enough that all of its exact features are kept
    assert effect["top1_fp32"] == exact["top1"]
    assert effect["top1_bf16"] == half.metrics["top1"]
    assert effect["difference"] == half.metrics["top1"] - exact["top1"]
    assert effect["images"] == 80


def test_shuffled_labels_give_chance():
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (400, 400))
    labels, truth = rng.integers(0, 4, 400), rng.integers(0, 4, 400)
    ballot = VoteConfig(classes=4, ks=[20], temperatures=[0.07])
    ranked = predict(lambda q, k: search(bank, q, k), labels, queries, ballot)[20, 0.07]
    # chance is 25, three standard deviations are 6.5
    assert abs(100 * (ranked[:, 0].numpy() == truth).mean() - 25) < 6.5
