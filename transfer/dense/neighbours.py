"""From patches to predictions: search the bank for each piece of the queries, and let neighbours vote."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mimbench.data.label_maps import class_indices
from mimbench.features.search import (
    Approximate,
    Floats,
    Ids,
    Metric,
    build_from_pieces,
    recall,
    search_approximate,
    search_pieces,
)
from mimbench.system.progress import Progress
from transfer.dense.banks import Patches, as_rows
from transfer.dense.confusion import Tallier, Tally
from transfer.dense.patches import Labels, modal
from transfer.dense.votes import LabelRows, pixel_votes

logger = logging.getLogger(__name__)
RECALL_QUERIES = 1000
Find = Callable[[Floats, int], tuple[Floats, Ids]]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Label values of every patch's pixels, and what they mean."""

    pixels: Labels
    """(pictures, m, p x p)"""
    first: int
    classes: int
    ignored: tuple[int, ...]
    names: tuple[str, ...]
    """Of the pictures."""


class KeptLabels:
    """Pixel labels of the patches that answer, read from the mapped file where they are asked for."""

    def __init__(self, pixels: Labels, rows: Ids) -> None:
        self.pixels, self.rows = pixels.reshape(-1, pixels.shape[-1]), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: Ids) -> Labels:
        return np.asarray(self.pixels[self.rows[at]])

    @property
    def shape(self) -> tuple[int, int]:
        """Patches, and pixels of each."""
        return len(self.rows), self.pixels.shape[1]


@dataclass(frozen=True, kw_only=True)
class LabelledPatches:
    """Patches of some pictures that may answer: those whose own modal label is a class."""

    patches: Patches
    pictures: NDArray[np.int64]
    labels: KeptLabels
    kept: NDArray[np.bool_]
    """(pictures, m)"""

    @classmethod
    def of(cls, patches: Patches, truth: Truth, pictures: NDArray[np.int64]) -> "LabelledPatches":
        """Return the bank of some pictures; patches whose modal label is ignored are left out."""
        per_image = truth.pixels.shape[1]
        kept = np.empty((len(pictures), per_image), dtype=bool)
        for row, picture in enumerate(pictures):
            kept[row] = ~np.isin(modal(np.asarray(truth.pixels[picture])), truth.ignored)
        rows = (pictures[:, None] * per_image + np.arange(per_image))[kept]
        return cls(
            patches=patches, pictures=pictures, labels=KeptLabels(truth.pixels, rows), kept=kept
        )

    def rows(self, *, unit: bool) -> Iterator[Floats]:
        """Yield the kept patches, piece by piece."""
        done = 0
        for at, tokens in self.patches.of(self.pictures, at_once=self.patches.piece):
            kept = self.kept[done : done + len(at)].ravel()
            done += len(at)
            rows = as_rows(tokens, unit=unit)
            yield rows if kept.all() else rows[kept]

    def exact(self, metric: Metric, device: str) -> "Answers":
        """Return the exact search: of cosines for `ip`, on rows of unit length."""

        def find(queries: Floats, k: int) -> tuple[Floats, Ids]:
            pieces = self.rows(unit=metric == "ip")
            return search_pieces(pieces, queries, k, metric=metric, device=device)

        return Answers(find=find, labels=self.labels, unit=metric == "ip")

    def approximate(self, how: Approximate, metric: Metric) -> "Answers":
        """Return the search of an inverted file."""
        pieces = partial(self.rows, unit=metric == "ip")
        index = build_from_pieces(pieces, len(self.labels), how, metric=metric)
        find = partial(search_approximate, index, metric=metric)
        return Answers(find=find, labels=self.labels, unit=metric == "ip")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A searchable bank."""

    find: Find
    labels: LabelRows
    unit: bool
    """Rows and queries have unit length."""


def measured_recall(one: Answers, exact: Answers, queries: Floats, k: int) -> dict[str, Any]:
    """Return what an approximate search finds of the exact neighbours, on evenly spread queries."""
    at = np.linspace(0, len(queries) - 1, min(RECALL_QUERIES, len(queries))).astype(int)
    some = np.ascontiguousarray(queries[at])
    found = recall(one.find(some, k)[1], exact.find(some, k)[1])
    logger.info("approximate index: recall at %d is %.2f %%", k, found)
    return {f"recall_at_{k}": found, "recall_queries": len(some)}


def vote(
    answers: Answers,
    queries: Patches,
    truth: Truth,
    *,
    pictures: NDArray[np.int64],
    ks: Sequence[int],
    label: str = "",
    keep: Collection[int] = (),
) -> Mapping[int, Tally]:
    """Return for each k the confusion of the query pictures, from one search.

    Args:
        answers: Of the bank.
        queries: Prepared as the bank is.
        truth: Of the query pictures.
        pictures: Which of them.
        ks: How many neighbours vote.
        label: Name of the progress line; none is shown without it.
        keep: Of the query pictures, by their place, those whose predictions the tallies keep.
    """
    talliers = {k: Tallier(truth.classes, keep) for k in ks}
    bar = Progress(label, len(pictures)) if label else None
    for at, tokens in queries.of(pictures):
        ids = answers.find(as_rows(tokens, unit=answers.unit), max(ks))[1]
        per_image = tokens.shape[1]
        for k, found in pixel_votes(answers.labels, ids, ks).items():
            shaped = found.reshape(len(at), per_image, -1)
            for picture, prediction in zip(at, shaped, strict=True):
                talliers[k].add(
                    truth.names[picture],
                    class_indices(np.asarray(truth.pixels[picture]), truth.first),
                    class_indices(prediction, truth.first),
                )
        if bar is not None:
            bar.step(len(at))
    if bar is not None:
        bar.close()
    return {k: tallier.close() for k, tallier in talliers.items()}
