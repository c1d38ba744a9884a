"""From features to predictions: search and vote in pieces, so that memory does not grow with the queries."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mimbench.features.search import Floats, Ids, usable_gpus
from mimbench.scores.neighbours import Neighbours, weighted_votes
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress

Find = Callable[[Floats, int], tuple[Floats, Ids]]
"""Similarities and bank rows (n, k) of the nearest neighbours of some queries."""
Ranked = Mapping[tuple[int, float], Tensor]
"""For each (k, temperature) the five best classes (n, 5)."""

CPU_QUERIES = 4096
"""Queries of one call, as many as FAISS takes at a time itself."""
GPU_QUERIES = 32768
"""More at a time: each call sends the bank to the GPU anew."""


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """Which votes are taken."""

    classes: int
    ks: Sequence[int]
    temperatures: Sequence[float]


def predict(
    find: Find,
    labels: Ids,
    queries: Floats,
    ballot: VoteConfig,
    *,
    room: Halving | None = None,
    label: str = "",
) -> Ranked:
    """Return the five best classes of every query, for every k and temperature, from one search.

    Args:
        find: The search; it is asked for the largest k only.
        labels: (rows,) of the bank.
        queries: (n, d).
        ballot: Numbers of neighbours that vote, and temperatures of their weights.
        room: How many queries at a time; out of memory halves it.
        label: Name of the progress line; none is shown without it.
    """
    room = room or queries_at_once()
    pairs = itertools.product(ballot.ks, ballot.temperatures)
    out = {pair: torch.empty(len(queries), 5, dtype=torch.int64) for pair in pairs}
    bar = Progress(label, len(queries)) if label else None
    done = 0

    def piece(size: int) -> tuple[Floats, Ids]:
        return find(queries[done : done + size], max(ballot.ks))

    while done < len(queries):
        similarity, ids = room.attempt(piece)
        at = slice(done, done + len(ids))
        for pair, ranked in _count(similarity, labels[ids], ballot).items():
            out[pair][at] = ranked
        done += len(ids)
        if bar is not None:
            bar.step(len(ids))
    if bar is not None:
        bar.close()
    return out


def _count(similarity: Floats, labels: Ids, ballot: VoteConfig) -> Ranked:
    found = Neighbours(similarity=torch.from_numpy(similarity), labels=torch.from_numpy(labels))
    return {
        (k, t): ranked
        for t in ballot.temperatures
        for k, ranked in weighted_votes(
            found, ks=ballot.ks, temperature=t, classes=ballot.classes
        ).items()
    }


def queries_at_once(device: str = "auto") -> Halving:
    """Return how many queries one call of the search takes on a device of this machine."""
    return Halving(size=GPU_QUERIES if usable_gpus(device) else CPU_QUERIES)
