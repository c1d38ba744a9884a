"""The one k-NN in torch: exact, with ties in the order of rows, equal to FAISS's search."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mimbench.features.search import search
from mimbench.scores import neighbours
from mimbench.scores.neighbours import knn, nearest


def unit(rows: int, *, seed: int, levels: int = 0) -> torch.Tensor:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    # few different values make many equal similarities
    x = x if not levels else (x * levels).round() / levels
    return x if levels else torch.nn.functional.normalize(x, dim=1)


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_neighbours_are_those_of_the_librarys_search(k: int, levels: int) -> None:
    bank, queries = unit(40, seed=0, levels=levels), unit(30, seed=1, levels=levels)
    similarity, ids = nearest(bank, queries, k)
    wanted, rows = search(bank.numpy(), queries.numpy(), k, device="cpu")
    assert np.array_equal(ids.numpy(), rows)
    np.testing.assert_allclose(similarity.numpy(), wanted, atol=1e-6)


def test_queries_in_pieces_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = unit(40, seed=0), unit(30, seed=1)
    whole = nearest(bank, queries, 5)
    monkeypatch.setattr(neighbours, "QUERIES", 7)
    assert torch.equal(nearest(bank, queries, 5)[1], whole[1])


def test_the_vote_is_scikit_learns() -> None:
    bank, queries = unit(200, seed=0), unit(60, seed=1)
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(2))
    found = knn(bank, labels, queries, k=9, temperature=0.07, classes=4)
    weigh: Any = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    judge = KNeighborsClassifier(9, metric="cosine", algorithm="brute", weights=weigh)
    wanted = judge.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    assert np.array_equal(found[:, 0].numpy(), wanted)
    assert torch.equal(found[:, 4], torch.full((60,), -1)), "four classes cannot fill five places"


def test_a_bank_smaller_than_k_votes_as_a_whole() -> None:
    bank, labels = torch.eye(6)[:3], torch.tensor([0, 1, 1])
    found = knn(bank, labels, torch.eye(6)[:1], k=10, temperature=0.07, classes=2)
    assert found[0, :2].tolist() == [0, 1]
