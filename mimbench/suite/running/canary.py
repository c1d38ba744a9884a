"""The canary: a small k-NN that a sound checkpoint must win, run before anything expensive.

A checkpoint must beat random weights of its own shape. That alone would let a half-loaded or
shuffled one pass, so it must also beat its own rearrangements (a shuffled one gains, or at least
does not lose, when it is shuffled again), and no block may still hold a fresh model's values.
docs/numbers/faq.md lists which damages this finds and which it cannot find.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mimbench.features.cards import Cards, embed
from mimbench.model import Weights
from mimbench.networks.kinds import build_network, with_tensors
from mimbench.scores.neighbours import knn
from mimbench.suite.running.baselines import HINTS, TWIN, baselines_of, faults_of

NEIGHBOURS, TEMPERATURE = 10, 0.07
TWIN_SIGMAS = 2.0
"""How many standard errors the lead over random weights must have."""
SIGMAS = 1.0
"""The same, over the checkpoint's own rearrangements."""


@dataclass(frozen=True, kw_only=True)
class CanaryResult:
    """What the canary found, in percent."""

    score: float
    baselines: Mapping[str, float]
    faults: tuple[str, ...]
    not_tried: tuple[str, ...] = ()
    """Baselines for which the time did not suffice."""


def hits_of(
    weights: Weights, cards: Cards, device: torch.device, batch: int = 64
) -> dict[str, Tensor]:
    """Return hits (queries,) of a weighted k-NN for class token and mean of patches."""
    network = build_network(weights).to(device)
    bank, queries = (embed(network, x, device, batch) for x in (cards.bank, cards.queries))
    hits = {}
    for name in bank:
        ranked = knn(
            bank[name],
            cards.bank_labels,
            queries[name],
            k=NEIGHBOURS,
            temperature=TEMPERATURE,
            classes=cards.classes,
        )
        hits[name] = (ranked[:, 0] == cards.query_labels).float()
    return hits


def examine(
    weights: Weights, cards: Cards, device: torch.device, budget: float = math.inf
) -> CanaryResult:
    """Return what is wrong with the weights.

    Args:
        weights: The checkpoint.
        cards: The labelled images.
        device: Where the k-NN's features are computed.
        budget: Seconds after which no further baseline is tried; the random twin always is.
    """
    began = time.monotonic()
    faults = faults_of(weights)
    own = hits_of(weights, cards, device)
    choice = max(own, key=lambda name: float(own[name].mean()))
    baselines: dict[str, float] = {}
    rest = []
    for name, change in baselines_of(weights).items():
        if baselines and time.monotonic() - began > budget:
            rest.append(name)
            continue
        hits = hits_of(with_tensors(weights, change()), cards, device)
        # the twin may take its better feature; a rearrangement is judged on the same one
        theirs = max(hits.values(), key=lambda h: float(h.mean())) if name == TWIN else hits[choice]
        baselines[name] = 100 * float(theirs.mean())
        lead, error = paired(own[choice], theirs)
        if beaten(name, lead, error):
            faults.append(
                f"{name} reach {baselines[name]:.1f} % in a small k-NN, the checkpoint only "
                f"{100 * float(own[choice].mean()):.1f} %"
            )
    return CanaryResult(
        score=100 * float(own[choice].mean()),
        baselines=baselines,
        faults=tuple(faults),
        not_tried=tuple(rest),
    )


def beaten(baseline: str, lead: float, error: float) -> bool:
    """Return whether a lead with this standard error tells against the checkpoint."""
    if baseline in HINTS:
        return lead < -TWIN_SIGMAS * error
    return lead <= (TWIN_SIGMAS if baseline == TWIN else SIGMAS) * error


def paired(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return the mean difference of hits in percent and its standard error."""
    difference = 100 * (a - b)
    return float(difference.mean()), float(difference.std() / math.sqrt(len(difference)))
