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
CLASSES_AT_ONCE = 16
"""Maps at full size that are in memory at a time."""
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
    """Return the winners for each k among labels (n, k, p): one pass over the classes that occur.

    A key is votes x 256 + (255 - label): the largest has the most votes, of equal ones the smallest label.
    """
    n, _, places = labels.shape
    kind = np.uint16 if ks[-1] < 256 else np.uint32
    candidates = _occurring(labels)
    best = {k: np.zeros((n, places), dtype=kind) for k in ks}
    rows = np.arange(n)
    for turn in range(candidates.shape[1]):
        still = candidates[:, turn] >= 0
        if not still.all():
            rows, labels, candidates = rows[still], labels[still], candidates[still]
        label = candidates[:, turn].astype(np.uint8)
        # bytes rather than truth values: adding those up needs no conversion
        equal = (labels == label[:, None, None]).view(np.uint8)
        low = (255 - label).astype(kind)[:, None]
        votes, done = np.zeros((len(rows), places), dtype=kind), 0
        for k in ks:
            for start in range(done, k, 255):
                votes += equal[:, start : min(start + 255, k)].sum(axis=1, dtype=np.uint8)
            done = k
            key = (votes << 8) + low
            if len(rows) == n:
                np.maximum(best[k], key, out=best[k])
            else:
                best[k][rows] = np.maximum(best[k][rows], key)
    return {k: (255 - (key & 255)).astype(np.uint8) for k, key in best.items()}


def _occurring(labels: Labels) -> NDArray[np.int16]:
    """Return the labels that occur in each row, ascending, padded with -1 (n, most)."""
    present = np.zeros((len(labels), 256), dtype=bool)
    present[np.arange(len(labels))[:, None], labels.reshape(len(labels), -1)] = True
    counts = present.sum(axis=1)
    out = np.full((len(labels), int(counts.max())), -1, dtype=np.int16)
    row, label = np.nonzero(present)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    out[row, np.arange(len(row)) - first] = label
    return out


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
    """Return the class of each pixel (images, H, W) from the shares of each patch (images, n, classes).

    Classes that no patch holds cannot win, and the others are enlarged a few at a time: full maps of
    every class take more memory than the rest of a search.
    """
    images = len(shares)
    held = torch.nonzero(shares.flatten(0, 1).amax(dim=0) > 0)[:, 0].tolist() or [0]
    best = torch.full((images, *size), -1.0)
    winner = torch.zeros((images, *size), dtype=torch.uint8)
    for start in range(0, len(held), CLASSES_AT_ONCE):
        some = torch.tensor(held[start : start + CLASSES_AT_ONCE])
        maps = shares[..., some].unflatten(1, grid).permute(0, 3, 1, 2)
        full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        value, at = full.max(dim=1)
        # of equal ones the smallest class, as everywhere
        more = value > best
        best = torch.where(more, value, best)
        winner = torch.where(more, some.to(torch.uint8)[at], winner)
    return winner.numpy()
