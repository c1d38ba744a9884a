"""Classification scores: top-k accuracy from ranked classes, per-image outcomes, shared by all tasks."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.system.files import atomic_path

logger = logging.getLogger(__name__)

VOTE_BYTES = 2 * 2**20
"""Votes of this many bytes are held at a time: so few stay in the processor's cache."""


def rank_classes(scores: Tensor, count: int = 5) -> Tensor:
    """Return the `count` best classes of each row (n, count), best first; a tie goes to the lower class.

    Rows shorter than `count` are padded with -1, which is no class.
    """
    classes = scores.shape[1]
    keys = _keys(scores, torch.arange(classes, device=scores.device), classes)
    best = keys.topk(min(count, classes), dim=1).indices
    return torch.nn.functional.pad(best, (0, count - best.shape[1]), value=-1)


def _keys(scores: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Return int64 keys in the order of scores, and of equal scores the lower class first."""
    bits = scores.float().contiguous().view(torch.int32).to(torch.int64)
    # floats in the order of integers: of negative ones, all bits but the sign are turned round
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits << 32) + (classes - 1 - ids)


def _rank_voted(votes: Tensor, near: Tensor, count: int = 5) -> Tensor:
    """Return what `rank_classes` does, where only the classes `near` (n, k) have votes.

    Looks at k candidates rather than at all classes. Where fewer than `count` classes have votes the
    lowest of the others follow, and these are among the first `count`.
    """
    classes = votes.shape[1]
    if near.shape[1] + count >= classes:
        return rank_classes(votes, count)
    candidates = torch.cat([near, torch.arange(count).expand(len(near), count)], dim=1)
    keys = _keys(votes.gather(1, candidates), candidates, classes)
    best = torch.empty(len(near), count, dtype=torch.int64)
    for place in range(count):
        top = keys.amax(dim=1, keepdim=True)
        best[:, place] = classes - 1 - (top[:, 0] & 0xFFFFFFFF)
        # a class stands there once for each of its votes
        keys.masked_fill_(keys == top, -1)
    return best


def top_percent(ranked: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of rows whose label is among the first `k` ranked classes."""
    if len(ranked) != len(labels):
        raise ValueError(f"{len(ranked)} predictions for {len(labels)} labels")
    hits = (ranked[:, :k] == labels[:, None]).any(dim=1)
    return 100.0 * int(hits.sum()) / max(1, len(labels))


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


def write_outcomes(
    out: Path,
    images: ImageList,
    top5: NDArray[np.int64],
    *,
    draws: NDArray[np.int64] | None = None,
) -> None:
    """Write what was predicted for each image: `outcomes.npz` with images, labels, top5.

    Where the metric is a mean over draws of the training images, `draws` (draws, n) is the best class
    in each of them, and `top5` that of the first.
    """
    if top5.shape != (len(images), 5):
        raise ValueError(f"predictions of shape {top5.shape} for {len(images)} images")
    arrays = {"images": np.array(images.names, dtype=np.str_), "labels": images.labels}
    arrays |= {"top5": top5} if draws is None else {"top5": top5, "draws": draws}
    with atomic_path(out / "outcomes.npz") as part, part.open("wb") as file:
        np.savez(file, **arrays)
