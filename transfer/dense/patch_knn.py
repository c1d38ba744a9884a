"""Patch k-NN segmentation (CAPI): ade-patch-knn, voc-patch-knn.

Darcet et al. 2025 (CAPI): pictures squashed to 224, last block's patches after the final norm,
standardised by the training patches; k in 1, 3, 10, 30 and cosine or L2 distance chosen on a random
tenth of the training pictures, then all of them answer. Every pixel place of a patch takes the most
frequent label at that place among the k neighbours, of equal ones the smallest; training patches whose
own modal label is ignored do not answer. mIoU over the classes that occur in truth or prediction, at
224. Expected on ADE20K: CAPI ViT-L/14 29.2 to 35.2, by its pretraining set. Here the search is fp32
(bf16 there). Not comparable with ade-dense-knn, nor with fine-tuned or linear mIoU.

    python -m transfer.dense.patch_knn checkpoint.pth --benchmark ade-patch-knn --data ade
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.dense.patch_knn"))

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mimbench.data.preprocess import Squash
from mimbench.features.nearby import counts_nearby, images_nearby
from mimbench.features.patches import FinalNorm, PatchBank, PatchSpec, extract_patches, patch_grid
from mimbench.features.search import Approximate
from mimbench.model import Spec, Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.figures import Figure
from mimbench.system.runtime import Ranks, pick_device, process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import frozen
from mimbench.vit.weights import VitWeights
from transfer.dense.banks import (
    DenseConfig,
    Patches,
    SquashedLabels,
    as_rows,
    choose_largest,
    every,
    held_out,
    patch_labels,
)
from transfer.dense.confusion import EveryClass as EveryClass
from transfer.dense.confusion import (
    Tally,
    miou_labelled,
    miou_occurring,
    pixel_accuracy,
    ratios,
)
from transfer.dense.drawing import draw, drawn_rows
from transfer.dense.neighbours import Answers, LabelledPatches, Truth, measured_recall, vote

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(footprint=frozen, nearby=lambda spec, config, notes: config.nearby(spec, notes))
Distance = Literal["cosine", "L2"]
METRICS: dict[Distance, Literal["ip", "l2"]] = {"cosine": "ip", "L2": "l2"}


@dataclass(frozen=True, kw_only=True)
class Config(DenseConfig):
    """Everything that may move the number, beside how patches are made."""

    k: tuple[int, ...] = (1, 3, 10, 30)
    distances: tuple[Distance, ...] = ("cosine", "L2")
    holdout: float = 0.1
    """Share of the training pictures that chooses k and distance; then all of them answer."""
    index: Approximate = field(default_factory=Approximate)
    """Of the last search; the choice is always made with an exact one."""

    def __post_init__(self) -> None:
        if not self.k or not self.distances or min(self.k) < 1:
            raise ValueError(f"k {list(self.k)} and distances {list(self.distances)} need values")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} is not between 0 and 1")

    def nearby(self, spec: Spec, notes: Mapping[str, Any]) -> dict[str, Self]:
        """Return neighbours of the k and distance that a run chose, and other sizes, which choose anew."""
        k, distance = notes["k"], notes["distance"]
        [other] = [name for name in METRICS if name != distance]
        return {
            **{
                n: replace(self, k=(c,), distances=(distance,)) for n, c in counts_nearby(k).items()
            },
            "other distance": replace(self, k=(k,), distances=(other,)),
            **images_nearby(spec, self),
        }


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Both splits' patches and labels."""

    train: Patches
    val: Patches
    train_truth: Truth
    val_truth: Truth
    class_names: tuple[str, ...]


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return mIoU with the k and distance that held-out training pictures choose."""
    weights = plain_vit(weights)
    del out
    with process_group(config.machine.device) as ranks:
        ready = prepare(weights, config, ranks)
        # each process computes the same: only the forward passes are shared out
        return evaluate(ready, config)


def prepare(
    weights: VitWeights, config: DenseConfig, ranks: Ranks, *, blocks: tuple[int, ...] = (1,)
) -> Ready:
    """Return the patch tokens of both splits, computed once for all tasks that squash alike."""
    squash = Squash(size=config.image_size, interpolation=config.interpolation)
    grid = patch_grid(weights, config.image_size)
    norm = FinalNorm(weights, pick_device(config.machine.device, ranks.local))
    parts: list[tuple[Patches, Truth]] = []
    splits = config.maps()
    for maps in splits:
        spec = PatchSpec(
            preprocess=squash,
            grid=grid,
            blocks=blocks,
            storage=config.storage,
            precision=config.precision,
        )
        bank: PatchBank = extract_patches(weights, maps.images, spec, config.machine, ranks=ranks)
        truth = Truth(
            pixels=patch_labels(maps, SquashedLabels(squash=squash), weights.spec.patch_size),
            first=maps.first,
            classes=len(maps.names),
            ignored=maps.ignored,
            names=maps.images.names,
        )
        parts.append((Patches(bank, norm, device=config.machine.device), truth))
    (train, train_truth), (val, val_truth) = parts
    return Ready(
        train=train,
        val=val,
        train_truth=train_truth,
        val_truth=val_truth,
        class_names=splits[0].names,
    )


def evaluate(ready: Ready, config: Config) -> TaskResult:
    """Choose k and distance on held-out pictures, then let all training pictures answer."""
    kept, held = held_out(len(ready.train_truth.names), config.holdout, config.seed)
    scaler = ready.train.fit(kept)
    ready.train.scaler = ready.val.scaler = scaler
    chosen, tried = choose(ready, config, kept, held)
    k, distance = chosen
    metric = METRICS[distance]
    bank = LabelledPatches.of(ready.train, ready.train_truth, every(len(ready.train_truth.names)))
    answers = exact = bank.exact(metric, config.machine.device)
    notes: dict[str, Any] = {}
    if config.index.kind != "exact":
        answers = bank.approximate(config.index, metric)
        first = next(ready.val.of(every(len(ready.val_truth.names))))[1]
        notes |= measured_recall(answers, exact, as_rows(first, unit=exact.unit), k)
    [tally] = vote(
        answers,
        ready.val,
        ready.val_truth,
        pictures=every(len(ready.val_truth.names)),
        ks=[k],
        label="patch k-NN",
        keep=drawn_rows(len(ready.val_truth.names)),
    ).values()
    notes |= {
        "k": k,
        "distance": distance,
        "selection": f"k and distance chosen on {len(held)} training pictures that were held out",
        "held_out_miou": {f"{d} k={n}": value for (n, d), value in tried.items()},
        "bank_patches": len(bank.labels),
        "training_pictures": len(ready.train_truth.names),
    }
    if config.storage != "fp32":
        notes["storage_effect"] = storage_effect(ready, exact, k)
    return dense_result(tally, ready, notes)


def choose(
    ready: Ready, config: Config, kept: NDArray[np.int64], held: NDArray[np.int64]
) -> tuple[tuple[int, Distance], dict[tuple[int, Distance], float]]:
    """Return the best k and distance by mIoU on held-out pictures, and every one's."""
    settings = list(itertools.product(config.k, config.distances))
    if len(settings) == 1:
        return settings[0], {}
    bank = LabelledPatches.of(ready.train, ready.train_truth, kept)
    found: dict[tuple[int, Distance], float] = {}
    for distance in config.distances:
        tallies = vote(
            bank.exact(METRICS[distance], config.machine.device),
            ready.train,
            ready.train_truth,
            pictures=held,
            ks=config.k,
            label=f"patch k-NN ({distance}), held-out pictures",
        )
        found |= {(k, distance): miou_occurring(t.total) for k, t in tallies.items()}
    ordered = {setting: found[setting] for setting in settings}
    return settings[choose_largest(list(ordered.values()))], ordered


def storage_effect(ready: Ready, answers: Answers, k: int) -> dict[str, Any]:
    """Return what half precision of the queries does, on the pictures whose exact tokens are kept."""
    rows, exact = ready.val.bank.exact()
    at, found = np.array(rows), []
    for tokens in (exact, ready.val.bank.image_rows(rows)):
        some = _Fixed(ready.val, at, tokens)
        found.append(vote(answers, some, ready.val_truth, pictures=at, ks=[k])[k])
    one, other = (miou_occurring(tally.total) for tally in found)
    return {
        "pictures": len(rows),
        "miou_exact": one,
        "miou_stored": other,
        "difference": other - one,
    }


class _Fixed(Patches):
    """Patches of a few pictures whose tokens are at hand."""

    def __init__(self, like: Patches, rows: NDArray[np.int64], tokens: Any) -> None:
        super().__init__(like.bank, like.norm, block=like.block, device=str(like.device))
        self.scaler, self.rows, self.tokens = like.scaler, rows, tokens

    def of(self, pictures: NDArray[np.int64], *, at_once: int | None = None) -> Any:
        """Yield one picture after the other."""
        del at_once
        for place, row in enumerate(self.rows):
            if row in pictures:
                yield np.array([row]), self.prepared(self.tokens[place : place + 1])


def dense_result(tally: Tally, ready: Ready, notes: dict[str, Any]) -> TaskResult:
    """Return the published mean, and what stands beside it."""
    total, names = tally.total, ready.class_names
    found = 100 * ratios(total)
    labelled = np.flatnonzero(total.sum(axis=1) > 0)
    return TaskResult(
        metrics={
            "miou": miou_occurring(total),
            "miou_labelled": miou_labelled(total),
            "aacc": pixel_accuracy(total),
        },
        outcomes=[tally.outcomes(every=False)],
        figures=[Figure(title="IoU", values={names[i]: float(found[i]) for i in labelled})],
        pictures=draw(tally, ready.val.bank, names, by_patch=True),
        notes=notes,
    )
