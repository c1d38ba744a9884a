"""Layer sweep of patches: which block segments best without training (our own protocol).

One pass keeps the patches of every block; ade-patch-knn's vote is tried on each, before and after the
final norm, on held-out training pictures. `miou` is that of the chosen block, `miou_last` that of the
last block after the norm, as ade-patch-knn reads it (there with its own k and distance).

    python -m transfer.dense.layers checkpoint.pth --benchmark ade-layers --data ade
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.dense.layers"))

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mimbench.model import Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.figures import Figure
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import frozen
from transfer.dense.banks import DenseConfig, every, held_out
from transfer.dense.confusion import EveryClass as EveryClass
from transfer.dense.confusion import Tally, miou_occurring
from transfer.dense.drawing import drawn_rows
from transfer.dense.neighbours import LabelledPatches, vote
from transfer.dense.patch_knn import METRICS, Distance, Ready, dense_result, prepare

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(footprint=frozen, beside={"miou_last": "last block"})


@dataclass(frozen=True, kw_only=True)
class Config(DenseConfig):
    """Everything that may move the numbers, beside how patches are made."""

    train_pictures: int | None = 2000
    """Every block of every picture is kept on disk: fewer pictures than the other dense tasks read."""
    k: int = 10
    distance: Distance = "cosine"
    norms: tuple[bool, ...] = (True, False)
    """After the final norm, or before."""
    holdout: float = 0.1
    """Share of the training pictures that chooses."""

    def __post_init__(self) -> None:
        if True not in self.norms:
            raise ValueError("norms needs true: the last block is read after the norm")


class PatchLayer(NamedTuple):
    """Where patches are read."""

    block: int
    """Counted from the end: 1 is the last."""
    normed: bool

    def describe(self, depth: int) -> str:
        """Say it in words."""
        where = "after" if self.normed else "before"
        return f"block {depth + 1 - self.block} of {depth}, {where} the final norm"


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return mIoU of the last and of the chosen block."""
    weights = plain_vit(weights)
    del out
    depth = weights.spec.depth
    with process_group(config.machine.device) as ranks:
        ready = prepare(weights, config, ranks, blocks=tuple(range(1, depth + 1)))
        return sweep(ready, config, depth)


def sweep(ready: Ready, config: Config, depth: int) -> TaskResult:
    """Try every place on held-out pictures; score the last and the chosen one on val."""
    places = [PatchLayer(b, normed) for b in range(depth, 0, -1) for normed in config.norms]
    pictures = len(ready.train_truth.names)
    kept, held = held_out(pictures, config.holdout, config.seed)
    found: dict[PatchLayer, float] = {}
    for place in places:
        at = reading(ready, place)
        at.train.scaler = at.train.fit(kept)
        answers = LabelledPatches.of(at.train, at.train_truth, kept).exact(
            METRICS[config.distance], config.machine.device
        )
        tally = vote(answers, at.train, at.train_truth, pictures=held, ks=[config.k])
        found[place] = miou_occurring(tally[config.k].total)
    chosen, last = max(reversed(places), key=lambda place: found[place]), PatchLayer(1, normed=True)
    tallies = {place: on_val(ready, config, place) for place in dict.fromkeys((chosen, last))}
    result = dense_result(
        tallies[chosen],
        ready,
        {
            "chosen": chosen.describe(depth),
            "last": last.describe(depth),
            "selection": f"chosen on {len(held)} training pictures that were held out",
            "training_pictures": pictures,
        },
    )
    more = {
        "miou_last": miou_occurring(tallies[last].total),
        "block": float(depth + 1 - chosen.block),
    }
    figures = [
        Figure(
            title=f"mIoU on held-out pictures, {'after' if n else 'before'} the norm, by block",
            values={str(depth + 1 - p.block): v for p, v in found.items() if p.normed == n},
            kind="line",
        )
        for n in config.norms
    ]
    return replace(result, metrics={**result.metrics, **more}, figures=figures)


def reading(ready: Ready, place: PatchLayer) -> Ready:
    """Return the same patches read at one place."""
    train, val = (p.at(place.block, normed=place.normed) for p in (ready.train, ready.val))
    return replace(ready, train=train, val=val)


def on_val(ready: Ready, config: Config, place: PatchLayer) -> Tally:
    """Return the confusion of the val pictures, all training pictures answering."""
    at = reading(ready, place)
    everyone = every(len(at.train_truth.names))
    at.train.scaler = at.val.scaler = at.train.fit(everyone)
    answers = LabelledPatches.of(at.train, at.train_truth, everyone).exact(
        METRICS[config.distance], config.machine.device
    )
    pictures = every(len(at.val_truth.names))
    found = vote(
        answers,
        at.val,
        at.val_truth,
        pictures=pictures,
        ks=[config.k],
        keep=drawn_rows(len(pictures)),
    )
    return found[config.k]
