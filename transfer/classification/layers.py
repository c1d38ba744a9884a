"""Layer sweep: which block of a frozen backbone separates classes best (our own protocol).

One pass keeps class token and mean of the patches of every block, before and after the final norm. k-NN
(in-knn's vote) and logistic regression are tried on each; block, feature and norm are chosen on
training images that are held out, then the whole training set answers for the val images. `top1` is
the k-NN of the chosen block, `top1_last` that of the last block, as the other columns have it.
Precedents: SimMIM reports block 8, AIM and PE their best layer, DINOv2 and CAPI the last.

    python -m transfer.classification.layers checkpoint.pth --benchmark in-layers --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.layers"))

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.data.subsets import hold_out
from mimbench.features.bank import FeatureBank
from mimbench.features.extract import extract
from mimbench.features.logistic.grid import Grid, held_out_score, solve
from mimbench.features.protocol import FrozenConfig, from_main
from mimbench.features.search import search
from mimbench.model import Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.figures import Figure
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.scores.neighbours import Neighbours, weighted_votes
from mimbench.system.progress import Progress
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import frozen

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=frozen,
    beside={"top1_last": "last block", "logreg_top1": "logistic regression, its chosen block"},
)
Part = Literal["cls", "avg"]


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the numbers, beside how features are made."""

    parts: tuple[Part, ...] = ("cls", "avg")
    """The first, normed, of the last block is what `top1_last` reads."""
    norms: tuple[bool, ...] = (True, False)
    """After the final norm, or before."""
    k: int = 20
    temperature: float = 0.07
    holdout: float = 0.1
    """Share of the training images that chooses."""
    logreg: bool = True
    grid: Grid = field(default_factory=lambda: Grid(lowest=1e-4, highest=1e4, steps=5))

    def __post_init__(self) -> None:
        if not self.parts or True not in self.norms:
            raise ValueError("parts needs a value, and norms needs true: the last block's own")
        super().__post_init__()


class VectorLayer(NamedTuple):
    """Where a feature is read."""

    block: int
    """Counted from the end: 1 is the last."""
    part: Part
    normed: bool

    @property
    def vector(self) -> str:
        """Its name in the bank."""
        return f"{'' if self.normed else 'raw.'}{self.part}.{self.block}"

    def describe(self, depth: int) -> str:
        """Say it in words."""
        where = "after" if self.normed else "before"
        return f"block {depth + 1 - self.block} of {depth}, {self.part}, {where} the final norm"


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Both lists and their banks."""

    train: FeatureBank
    val: FeatureBank
    kept: NDArray[np.int64]
    held: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the training images."""
        return self.train.images.labels

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.train.images.classes)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return k-NN and logistic regression of the last and of the chosen block."""
    weights = plain_vit(weights)
    del out
    train, val = config.images()
    depth = weights.spec.depth
    with process_group(config.machine.device) as ranks:

        def bank(images: ImageList) -> FeatureBank:
            spec = replace(config.bank(), blocks=depth, raw=True)
            return extract(weights, images, spec, config.machine, ranks=ranks)

        kept, held = hold_out(train.labels, config.holdout, seed=config.seed)
        sets = Sets(train=bank(train), val=bank(val), kept=kept, held=held)
        return from_main(lambda: sweep(sets, config, depth), ranks)


def sweep(sets: Sets, config: Config, depth: int) -> TaskResult:
    """Try every place on held-out images; score the last and the chosen one on val."""
    places = [
        VectorLayer(block, part, normed)
        for block in range(depth, 0, -1)
        for part in config.parts
        for normed in config.norms
    ]
    last = VectorLayer(1, config.parts[0], normed=True)
    found = {place: held_out_knn(sets, config, place) for place in places}
    # of equal ones the deepest
    chosen = max(reversed(places), key=lambda place: found[place])
    ranked = {place: val_knn(sets, config, place) for place in dict.fromkeys((chosen, last))}
    truth = torch.from_numpy(sets.val.images.labels)
    metrics = {
        "top1": top_percent(ranked[chosen], truth, 1),
        "top5": top_percent(ranked[chosen], truth, 5),
        "top1_last": top_percent(ranked[last], truth, 1),
        "block": float(depth + 1 - chosen.block),
    }
    notes = {
        "chosen": chosen.describe(depth),
        "last": last.describe(depth),
        "selection": f"chosen on {len(sets.held)} training images that were held out",
    }
    figures = curves("k-NN on held-out images", found, depth)
    if config.logreg:
        more, said, drawn = sweep_logreg(sets, config, places, depth)
        metrics, notes, figures = metrics | more, notes | said, figures + drawn
    outcomes = [Hits.of(sets.val.images, ranked[chosen].numpy())]
    return TaskResult(metrics=metrics, outcomes=outcomes, figures=figures, notes=notes)


def curves(title: str, found: dict[VectorLayer, float], depth: int) -> list[Figure]:
    """Return a line over the blocks for each part and norm."""
    kinds = dict.fromkeys((place.part, place.normed) for place in found)
    return [
        Figure(
            title=f"{title}: {part}, {'after' if normed else 'before'} the norm, by block",
            values={
                str(depth + 1 - p.block): top
                for p, top in found.items()
                if (p.part, p.normed) == (part, normed)
            },
            kind="line",
        )
        for part, normed in kinds
    ]


def knn(
    bank: Tensor, labels: NDArray[np.int64], queries: Tensor, config: Config, classes: int
) -> Tensor:
    """Return the five best classes (n, 5) by in-knn's vote."""
    rows, asked = (
        np.ascontiguousarray(F.normalize(x, dim=1).numpy(), dtype=np.float32)
        for x in (bank, queries)
    )
    k = min(config.k, len(rows))
    similarity, ids = search(rows, asked, k, device=config.machine.device)
    near = Neighbours(similarity=torch.from_numpy(similarity), labels=torch.from_numpy(labels[ids]))
    return weighted_votes(near, ks=[k], temperature=config.temperature, classes=classes)[k]


def vectors(bank: FeatureBank, place: VectorLayer) -> Tensor:
    """Return one feature of every image (n, d)."""
    return bank.vectors([place.vector])[place.vector]


def held_out_knn(sets: Sets, config: Config, place: VectorLayer) -> float:
    """Return top-1 of the held-out images, the other training images being the bank."""
    x = vectors(sets.train, place)
    ranked = knn(x[sets.kept], sets.labels[sets.kept], x[sets.held], config, sets.classes)
    return top_percent(ranked, torch.from_numpy(sets.labels[sets.held]), 1)


def val_knn(sets: Sets, config: Config, place: VectorLayer) -> Tensor:
    """Return the five best classes of the val images, all training images being the bank."""
    bank, queries = vectors(sets.train, place), vectors(sets.val, place)
    return knn(bank, sets.labels, queries, config, sets.classes)


def sweep_logreg(
    sets: Sets, config: Config, places: list[VectorLayer], depth: int
) -> tuple[dict[str, float], dict[str, str], list[Figure]]:
    """Return metrics, notes and curves of logistic regression over every place."""
    grid, last = config.grid, VectorLayer(1, config.parts[0], normed=True)
    best_c: dict[VectorLayer, float] = {}
    found: dict[VectorLayer, float] = {}
    bar = Progress("logistic regression of each block", len(places))
    for place in places:
        x = vectors(sets.train, place)
        labels = sets.labels[sets.kept]
        tried = solve(x[sets.kept], labels, sets.classes, grid.values, grid)
        scores = [
            held_out_score(tried.logits(i, x[sets.held]), sets.labels[sets.held], "accuracy")
            for i in range(len(grid.values))
        ]
        at = int(np.argmax(scores))
        best_c[place], found[place] = grid.values[at], scores[at]
        bar.step()
    bar.close()
    chosen = max(reversed(places), key=lambda place: found[place])
    truth = torch.from_numpy(sets.val.images.labels)
    tops = {}
    for place in dict.fromkeys((chosen, last)):
        final = solve(vectors(sets.train, place), sets.labels, sets.classes, [best_c[place]], grid)
        tops[place] = top_percent(rank_classes(final.logits(0, vectors(sets.val, place))), truth, 1)
    metrics = {
        "logreg_top1": tops[chosen],
        "logreg_top1_last": tops[last],
        "logreg_block": float(depth + 1 - chosen.block),
    }
    notes = {"logreg_chosen": chosen.describe(depth)}
    return metrics, notes, curves("logistic regression on held-out images", found, depth)
