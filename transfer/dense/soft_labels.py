"""Class shares of the patches of a bank, computed from their pixels where a search asks for them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from transfer.dense.neighbours import KeptLabels
from transfer.dense.patches import IGNORED, Floats, Labels, frequencies
from transfer.dense.votes import Ids, soft_votes

QUERIES_AT_ONCE = 512
"""Patches whose neighbours' shares are in memory at a time."""


class SoftLabels:
    """The share of each class in each patch of several parts, as if they were rows of one array.

    A bank of ten million patches of 151 classes would take 6 GB; its pixels lie in a mapped file.
    """

    def __init__(self, parts: Sequence[KeptLabels], classes: int) -> None:
        self.parts, self.classes = parts, classes
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, at: Ids) -> Floats:
        """Return the shares (..., classes) of some rows (...)."""
        rows, back = np.unique(at, return_inverse=True)
        cuts = np.searchsorted(rows, self.starts)
        pixels = [
            part[rows[cuts[i] : cuts[i + 1]] - self.starts[i]] for i, part in enumerate(self.parts)
        ]
        shares = frequencies(without_void(np.concatenate(pixels)), self.classes)
        return shares[back.reshape(at.shape)]

    def vote(self, similarity: Floats, neighbours: Ids, temperature: float) -> Tensor:
        """Return the neighbours' shares (n, classes), weighted by softmax(cosine / temperature)."""
        found = []
        for start in range(0, len(neighbours), QUERIES_AT_ONCE):
            some = slice(start, start + QUERIES_AT_ONCE)
            found.append(soft_votes(similarity[some], self[neighbours[some]], temperature))
        return torch.cat(found)


def without_void(pixels: Labels) -> Labels:
    """Return labels with void as class 0, as the published bank has it."""
    return np.where(pixels == IGNORED, 0, pixels).astype(np.uint8)
