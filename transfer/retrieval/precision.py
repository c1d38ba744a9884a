"""Average precision as the revisited Oxford and Paris benchmarks define it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.data.contents import Ids, Landmarks

PROTOCOLS = ("easy", "medium", "hard")
KAPPAS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """What counts for one query: its positives, and what is taken out of the ranking before it counts."""

    positive: Ids
    ignored: Ids


def judgements(truth: Landmarks, protocol: str) -> list[Relevance]:
    """Return each query's positives and ignored images under easy, medium or hard."""
    rows = zip(truth.easy, truth.hard, truth.junk, strict=True)
    if protocol == "easy":
        return [Relevance(positive=e, ignored=np.union1d(j, h)) for e, h, j in rows]
    if protocol == "medium":
        return [Relevance(positive=np.union1d(e, h), ignored=j) for e, h, j in rows]
    return [Relevance(positive=h, ignored=np.union1d(j, e)) for e, h, j in rows]


def positive_ranks(ranking: Ids, judged: Relevance) -> Ids:
    """Return the ranks of the positives, from 0 and ascending, once the ignored images are out."""
    counted = ranking[~np.isin(ranking, judged.ignored)]
    return np.flatnonzero(np.isin(counted, judged.positive))


def average_precision(ranks: Ids) -> float:
    """Return the area under precision over recall by the trapezoid rule; nan without positives.

    Positive number j at rank r adds the mean of the precision before it (1 at rank 0) and after it.
    """
    if not len(ranks):
        return float("nan")
    j = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, j / np.maximum(ranks, 1))
    after = (j + 1) / (ranks + 1)
    return float(((before + after) / 2).sum() / len(ranks))


def precision_at(ranks: Ids, kappas: Sequence[int] = KAPPAS) -> NDArray[np.float64]:
    """Return the share of positives among the first min(k, place of the last positive); nan without any."""
    if not len(ranks):
        return np.full(len(kappas), np.nan)
    places = ranks + 1
    cut = np.minimum(places.max(), np.array(kappas))
    return (places[None] <= cut[:, None]).sum(axis=1) / cut


def score(rankings: Ids, truth: Landmarks) -> dict[str, NDArray[np.float64]]:
    """Return each query's scores in [0, 1], nan where it has no positive.

    Args:
        rankings: (queries, images) places in the database, the most similar first.
        truth: The judgements.

    Returns:
        `map_<protocol>` and `mp<k>_<protocol>`, each (queries,).
    """
    found: dict[str, NDArray[np.float64]] = {}
    for protocol in PROTOCOLS:
        ranks = [
            positive_ranks(row, judged)
            for row, judged in zip(rankings, judgements(truth, protocol), strict=True)
        ]
        found[f"map_{protocol}"] = np.array([average_precision(r) for r in ranks])
        precisions = np.stack([precision_at(r) for r in ranks])
        found |= {f"mp{k}_{protocol}": precisions[:, i] for i, k in enumerate(KAPPAS)}
    return found
