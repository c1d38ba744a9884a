"""k-NN: DINO's stored numbers, the search against brute force, every option on every path."""

import itertools
import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from knn import classify
from knn.classify import Config, prepare
from mimbench.data.lists import ImageList
from mimbench.features import search as index
from mimbench.features.search import (
    Approximate,
    build_approximate,
    gpu_slices,
    merge,
    recall,
    search,
    search_approximate,
)
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import rank_classes
from mimbench.scores.neighbours import Neighbours, vote_scores, weighted_votes
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError


def dino_vote(similarity: Any, labels: Any, classes: int, temperature: Any):
    """DINO's vote written plainly: one-hot neighbours, weighted and summed."""
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return (one_hot * (similarity / temperature).exp()[..., None]).sum(dim=1)


@pytest.mark.parametrize("normalise", [True, False])
def test_golden_at_every_k_and_temperature(golden: Path, normalise: bool):
    arrays = np.load(golden / "knn.npz")
    expected = json.loads((golden / "knn.json").read_text())
    bank, queries = (
        prepare(torch.from_numpy(arrays[f"{s}_features"].copy()), normalise=normalise)
        for s in ("train", "test")
    )
    similarity, ids = search(bank, queries, 200)
    found = Neighbours(
        similarity=torch.from_numpy(similarity),
        labels=torch.from_numpy(arrays["train_labels"][ids]),
    )
    labels = torch.from_numpy(arrays["test_labels"])
    seen = set()
    for temperature in (0.07, 0.2):
        voted = weighted_votes(
            found, ks=[200, 1, 5, 10, 20, 100], temperature=temperature, classes=10
        )
        for k, ranked in voted.items():
            name = f"k{k}_T{temperature}"
            seen.add(name)
            top1, top5 = vote_scores(ranked, labels, k)
            assert (top1, top5) == pytest.approx(
                (expected[name]["top1"], expected[name]["top5"]), abs=1e-9
            ), name
    assert seen == set(expected)


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_search_is_brute_force(metric: Any):
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((500, 24)).astype(np.float32)
    queries = rng.standard_normal((77, 24)).astype(np.float32)
    similarity, ids = search(bank, queries, 30, metric=metric)
    scores = torch.from_numpy(queries) @ torch.from_numpy(bank).T
    if metric == "l2":
        scores = -0.5 * torch.cdist(torch.from_numpy(queries), torch.from_numpy(bank)) ** 2
    best = scores.topk(30)
    assert np.array_equal(ids, best.indices.numpy())
    np.testing.assert_allclose(similarity, best.values.numpy(), rtol=1e-4, atol=1e-4)


def test_metric_and_normalisation_matter_on_unnormalised_features():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.standard_normal((300, 8)).astype(np.float32))
    features *= torch.rand(300, 1) * 5
    raw, unit = (prepare(features.clone(), normalise=n) for n in (False, True))
    by = {
        (m, n): search(raw if not n else unit, (raw if not n else unit)[:50], 10, metric=m)[1]
        for m in ("ip", "l2")
        for n in (True, False)
    }
    assert np.array_equal(by["ip", True], by["l2", True])
    assert not np.array_equal(by["ip", False], by["l2", False])
    assert not np.array_equal(by["ip", False], by["ip", True])


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("k", [1, 3, 120])
def test_ties_go_to_the_first_row(metric: Any, k: int):
    rng = np.random.default_rng(2)
    # small whole numbers: products are exact, so that equal rows have equal scores
    base = rng.integers(-2, 3, (40, 6)).astype(np.float32)
    bank = np.concatenate([base] * 5)
    queries = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    similarity, ids = search(bank, queries, k, metric=metric)
    scores = queries @ bank.T
    if metric == "l2":
        scores = -0.5 * np.square(queries[:, None] - bank[None]).sum(-1)
    for row in range(9):
        order = np.lexsort((np.arange(200), -scores[row]))[:k]
        assert np.array_equal(ids[row], order)
        np.testing.assert_array_equal(similarity[row], scores[row, order])


def test_a_collapsed_backbone_ends_and_is_deterministic():
    bank = np.ones((3000, 4), dtype=np.float32)
    ids = search(bank, bank[:50], 10)[1]
    assert np.array_equal(ids, np.tile(np.arange(10), (50, 1)))


def test_equal_votes_go_to_the_lower_class():
    scores = torch.tensor([[0.0, 2.0, 2.0, -1.0, 0.0, 2.0], [1.0, 1, 1, 1, 1, 1]])
    assert rank_classes(scores).tolist() == [[1, 2, 5, 0, 4], [0, 1, 2, 3, 4]]
    assert rank_classes(torch.tensor([[-3.0, -2.0, -2.5]])).tolist() == [[1, 2, 0, -1, -1]]


def test_votes_are_dinos_in_any_piece_size(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(101, 40, generator=generator).sort(1, descending=True).values
    labels = torch.randint(0, 12, (101, 40), generator=generator)
    found = Neighbours(similarity=similarity, labels=labels)
    whole = weighted_votes(found, ks=[5, 40], temperature=0.1, classes=12)
    for k in (5, 40):
        reference = dino_vote(similarity[:, :k], labels[:, :k], 12, 0.1)
        assert torch.equal(whole[k][:, 0], reference.argmax(1))
    monkeypatch.setattr("mimbench.scores.neighbours.VOTE_BYTES", 1)
    for k, ranked in weighted_votes(found, ks=[5, 40], temperature=0.1, classes=12).items():
        assert torch.equal(ranked, whole[k])


def test_large_unnormalised_similarities_do_not_overflow():
    similarity = torch.tensor([[900.0, 899.99, 500.0]])
    found = Neighbours(similarity=similarity, labels=torch.tensor([[2, 1, 0]]))
    ranked = weighted_votes(found, ks=[3], temperature=0.07, classes=3)[3]
    assert ranked[0].tolist() == [2, 1, 0, -1, -1]


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_slices_of_a_bank_merge_to_the_whole(metric: Any):
    rng = np.random.default_rng(3)
    bank, queries = (rng.standard_normal((n, 12)).astype(np.float32) for n in (333, 40))
    slices = gpu_slices(bank.nbytes, 333, [9000, 6000])
    assert slices[0][0] == 0
    assert slices[-1][1] == 333
    assert all(a[1] == b[0] for a, b in itertools.pairwise(slices))
    assert max(b - a for a, b in slices) * 12 * 4 <= 6000 * index.GPU_SHARE + 12 * 4
    parts = []
    for start, stop in slices:
        values, ids = index._search_cpu(bank[start:stop], queries, 20, metric)
        parts.append((values, ids + start))
    ids = merge(parts, 20, metric)[1]
    assert np.array_equal(ids, search(bank, queries, 20, metric=metric)[1])


def test_the_gpu_path_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch):
    """The path for several GPUs, with FAISS's GPU search replaced by its CPU search."""
    rng = np.random.default_rng(4)
    bank, queries = (rng.standard_normal((n, 12)).astype(np.float32) for n in (300, 20))
    both: list[index.Metric] = ["ip", "l2"]
    expected: dict[index.Metric, Any] = {m: search(bank, queries, 15, metric=m) for m in both}
    calls = []

    def knn_gpu(_resources: Any, xq: Any, xb: Any, k: int, *, metric: Any, device: Any):
        calls.append((device, len(xb)))
        return faiss.knn(xq, xb, k, metric=metric)

    monkeypatch.setattr(index, "gpu_count", lambda: 2)
    monkeypatch.setattr(index.torch.cuda, "mem_get_info", lambda gpu: (6000, 6000))
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    for metric, (similarity, ids) in expected.items():
        found = search(bank, queries, 15, metric=metric)
        assert np.array_equal(found[1], ids)
        np.testing.assert_allclose(found[0], similarity, rtol=1e-5)
    assert {device for device, _ in calls} == {0, 1}
    assert max(rows for _, rows in calls) * 12 * 4 <= 6000
    calls.clear()
    search(bank, queries, 15, device="cuda:1")
    assert {device for device, _ in calls} == {1}
    calls.clear()
    search(bank, queries, 15, device="cpu")
    assert not calls


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_an_approximate_index_states_its_recall(kind: Any):
    rng = np.random.default_rng(5)
    bank, queries = (rng.standard_normal((n, 16)).astype(np.float32) for n in (800, 50))
    exact = search(bank, queries, 10)[1]
    few, all_lists = (
        search_approximate(
            build_approximate(
                bank, Approximate(kind=kind, lists=16, probes=p, code_bytes=2, code_bits=4)
            ),
            queries,
            10,
        )[1]
        for p in (2, 16)
    )
    assert recall(exact, exact) == 100
    assert recall(few, exact) < recall(all_lists, exact)
    if kind == "ivf":
        assert recall(all_lists, exact) == 100
    with pytest.raises(UserError, match="raise probes"):
        search_approximate(
            build_approximate(bank, Approximate(kind="ivf", lists=16, probes=1)), queries, 700
        )


def test_impossible_requests_say_what_to_do():
    bank = np.zeros((5, 2), dtype=np.float32)
    with pytest.raises(UserError, match="k = 6 neighbours of a bank of 5"):
        search(bank, bank, 6)
    with pytest.raises(UserError, match="must be among k"):
        from_mapping(Config, {"k": [5], "data": "x"})
    with pytest.raises(UserError, match="temperature 0.0 is not positive"):
        from_mapping(Config, {"temperature": [0.0], "main_temperature": 0.0, "data": "x"})
    with pytest.raises(UserError, match="smaller than the crop"):
        from_mapping(Config, {"image_size": 448, "data": "x"})
    with pytest.raises(UserError, match="did you mean 'normalise'"):
        from_mapping(Config, {"normalize": True, "data": "x"})
    with pytest.raises(ValueError, match="predictions of shape"):
        Hits.of(_list(3), np.zeros((2, 5), dtype=np.int64))
    assert classify.VERSION >= 1


def _list(count: int):

    return ImageList(
        names=tuple(f"a/{i}" for i in range(count)),
        labels=np.zeros(count, dtype=np.int64),
        classes=("a",),
        stamps=("",) * count,
        where="here",
        opener=lambda index: pytest.fail("not read"),
    )
