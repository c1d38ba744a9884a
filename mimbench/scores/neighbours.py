"""k-NN in torch: exact neighbours in a bank that memory holds, and their weighted vote.

Banks of a million images are searched with FAISS (`mimbench.features.search`); the vote is the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mimbench.scores.metrics import rank_classes, rank_keys, top_percent

QUERIES = 512
"""Queries compared with the bank at a time."""
VOTE_BYTES = 2 * 2**20
"""Votes of this many bytes are held at a time: so few stay in the processor's cache."""


def nearest(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return similarities and rows (n, k) of the nearest bank rows, nearest first, on the CPU.

    The similarity is the inner product; of equal rows the lower comes first, at the k-th too.
    """
    k = min(k, len(bank))
    similarity, ids = [], []
    for part in queries.split(QUERIES):
        scores = part @ bank.T
        # one more than asked for shows whether the k-th place is shared
        values, best = scores.topk(min(k + 1, len(bank)), dim=1)
        tied = (values[:, 1:] == values[:, :-1]).any(dim=1)
        best = best[:, :k]
        if tied.any():
            best[tied] = rank_classes(scores[tied], k)
        similarity.append(scores.gather(1, best).cpu())
        ids.append(best.cpu())
    return torch.cat(similarity), torch.cat(ids)


def knn(
    bank: Tensor, labels: Tensor, queries: Tensor, *, k: int, temperature: float, classes: int
) -> Tensor:
    """Return the five best classes (n, 5) of each query by a weighted vote of its k neighbours.

    Args:
        bank: (rows, d).
        labels: (rows,) of the bank.
        queries: (n, d).
        k: How many vote; at most all rows do.
        temperature: Of the weights exp(similarity / temperature).
        classes: How many there are.
    """
    similarity, ids = nearest(bank, queries, k)
    found = Neighbours(similarity=similarity, labels=labels[ids])
    k = ids.shape[1]
    return weighted_votes(found, ks=[k], temperature=temperature, classes=classes)[k]


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest bank rows of each query, nearest first."""

    similarity: Tensor
    """(n, k) float32"""
    labels: Tensor
    """(n, k) int64"""


def weighted_votes(
    found: Neighbours, *, ks: Sequence[int], temperature: float, classes: int
) -> dict[int, Tensor]:
    """Return for each k the five best classes (n, 5) by DINO's vote: sum of exp(similarity / T).

    One pass over the neighbours serves all k; the vote is taken in pieces, in float32.
    """
    ks = sorted(set(ks))
    out = {k: torch.empty(len(found.labels), 5, dtype=torch.int64) for k in ks}
    for rows in _pieces(len(found.labels), classes):
        similarity = found.similarity[rows].float()
        # a common factor for each query: nothing overflows, no ranking moves
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(weights), classes)
        done = 0
        for k in ks:
            votes.scatter_add_(1, found.labels[rows, done:k], weights[:, done:k])
            # with k < 5 only k classes can be ranked
            out[k][rows] = _rank_voted(votes, found.labels[rows, :k])
            done = k
    return out


def _pieces(count: int, classes: int) -> Iterator[slice]:
    size = max(1, VOTE_BYTES // (4 * classes))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def vote_scores(ranked: Tensor, labels: Tensor, k: int) -> tuple[float, float]:
    """Return top-1 and top-5 of a vote among k neighbours; fewer than five cannot name five."""
    return top_percent(ranked, labels, 1), top_percent(ranked, labels, min(5, k))


def _rank_voted(votes: Tensor, near: Tensor, count: int = 5) -> Tensor:
    """Return what `rank_classes` does, where only the classes `near` (n, k) have votes.

    Looks at k candidates rather than at all classes. Where fewer than `count` classes have votes the
    lowest of the others follow, and these are among the first `count`.
    """
    classes = votes.shape[1]
    if near.shape[1] + count >= classes:
        return rank_classes(votes, count)
    candidates = torch.cat([near, torch.arange(count).expand(len(near), count)], dim=1)
    keys = rank_keys(votes.gather(1, candidates), candidates, classes)
    best = torch.empty(len(near), count, dtype=torch.int64)
    for place in range(count):
        top = keys.amax(dim=1, keepdim=True)
        best[:, place] = classes - 1 - (top[:, 0] & 0xFFFFFFFF)
        # a class stands there once for each of its votes
        keys.masked_fill_(keys == top, -1)
    return best
