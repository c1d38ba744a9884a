"""What neighbours say about a patch: a majority for each pixel place (CAPI), or weighted shares (Hummingbird)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from transfer.dense.patches import Floats, Labels

Ids = NDArray[np.int64]
PIECE_BYTES = 8 * 2**20
"""Neighbours' pixels of this many bytes are counted at a time: they stay in the processor's cache."""


class LabelRows(Protocol):
    """Pixel labels of a bank's patches: an array, or what reads like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Patches, and pixels of each."""
        ...

    def __getitem__(self, at: Ids, /) -> Labels: ...


def pixel_votes(bank: LabelRows, neighbours: Ids, ks: Sequence[int]) -> dict[int, Labels]:
    """Return for each k the most frequent label at each pixel place (n, p), of equal ones the smallest.

    Args:
        bank: (patches, p) pixels of the bank's patches.
        neighbours: (n, at least max(ks)) rows of the bank, nearest first.
        ks: How many neighbours vote.
    """
    ks = sorted(set(ks))
    places = bank.shape[1]
    out = {k: np.empty((len(neighbours), places), dtype=np.uint8) for k in ks}
    size = max(1, PIECE_BYTES // (ks[-1] * places))
    for start in range(0, len(neighbours), size):
        at = slice(start, min(start + size, len(neighbours)))
        labels = bank[neighbours[at, : ks[-1]]]
        for k, found in _count(labels, ks).items():
            out[k][at] = found
    return out


def _count(labels: Labels, ks: Sequence[int]) -> dict[int, Labels]:
    """Return the winners for each k among labels (n, k, p): one pass over the classes that occur."""
    n, _, places = labels.shape
    kind = np.uint8 if ks[-1] < 256 else np.uint16
    candidates = _occurring(labels)
    best = {k: np.zeros((n, places), dtype=kind) for k in ks}
    winner = {k: np.zeros((n, places), dtype=np.uint8) for k in ks}
    rows = np.arange(n)
    for turn in range(candidates.shape[1]):
        # labels come in ascending order, so a later one must have more votes to win
        still = turn < _lengths(candidates)
        if not still.all():
            rows, labels, candidates = rows[still], labels[still], candidates[still]
        if not len(rows):
            break
        equal = labels == candidates[:, turn, None, None].astype(np.uint8)
        votes, done = np.zeros((len(rows), places), dtype=kind), 0
        for k in ks:
            votes = votes + equal[:, done:k].sum(axis=1, dtype=kind)
            more = votes > best[k][rows]
            best[k][rows] = np.where(more, votes, best[k][rows])
            winner[k][rows] = np.where(
                more, candidates[:, turn, None].astype(np.uint8), winner[k][rows]
            )
            done = k
    return winner


def _occurring(labels: Labels) -> NDArray[np.int16]:
    """Return the labels that occur in each row, ascending, padded with -1 (n, most)."""
    present = np.zeros((len(labels), 256), dtype=bool)
    present[np.arange(len(labels))[:, None], labels.reshape(len(labels), -1)] = True
    counts = present.sum(axis=1)
    out = np.full((len(labels), int(counts.max(initial=1))), -1, dtype=np.int16)
    row, label = np.nonzero(present)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    out[row, np.arange(len(row)) - first] = label
    return out


def _lengths(candidates: NDArray[np.int16]) -> NDArray[np.int64]:
    return (candidates >= 0).sum(axis=1)


def soft_votes(similarity: Floats, labels: Floats, temperature: float) -> Tensor:
    """Return the neighbours' class shares, weighted by softmax(cosine / temperature) (n, classes).

    Args:
        similarity: (n, k) cosines.
        labels: (n, k, classes) shares of each class in the neighbours.
        temperature: Of the softmax.
    """
    weights = torch.softmax(torch.from_numpy(similarity) / temperature, dim=1)
    return torch.bmm(weights[:, None], torch.from_numpy(labels))[:, 0]


def upsample(shares: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Labels:
    """Return the class of each pixel (images, H, W) from the shares of each patch (images, n, classes)."""
    maps = shares.unflatten(1, grid).permute(0, 3, 1, 2)
    full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return full.argmax(dim=1).to(torch.uint8).numpy()
