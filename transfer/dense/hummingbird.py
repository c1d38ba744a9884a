"""Dense nearest-neighbour retrieval (Hummingbird): voc-dense-knn, ade-dense-knn.

Balazevic et al. 2023, as open-hummingbird-eval runs it: pictures at 512 (504 for patch 14), bank of random
crops with jitter, two views of each training picture, `memory` patches in all, those of rare classes
first; 30 neighbours by cosine vote with softmax(cosine / 0.02) on soft patch labels; label maps are
upsampled bilinearly and scored at the network's resolution. Kept as published: void counts as class
0 in the bank; mIoU is the mean over every class, absent ones 0, after predicted classes are matched
to true ones (`miou_identity` is without); the last channel's deviation is 0.255. Published runs search
with ScaNN; here exactly, or with an inverted file whose recall is stated. Expected on VOC with memory
10 240 000: DINO ViT-B/16 55.7, DINOv2 ViT-B/14 76.9.

    python -m transfer.dense.hummingbird checkpoint.pth --benchmark voc-dense-knn --data voc
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.dense.hummingbird"))

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mimbench.data.label_maps import LabelMaps
from mimbench.data.preprocess import Interpolation, Squash
from mimbench.features.nearby import counts_nearby, images_nearby
from mimbench.features.patches import FinalNorm, PatchBank, PatchSpec, extract_patches, patch_grid
from mimbench.features.search import (
    Approximate,
    Floats,
    build_from_pieces,
    search_approximate,
    search_pieces,
)
from mimbench.model import Spec, Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.figures import Figure
from mimbench.system.errors import UserError
from mimbench.system.progress import Progress
from mimbench.system.runtime import Ranks, pick_device, process_group
from mimbench.system.seeds import sequence_generator
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import frozen
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD, VitWeights
from transfer.dense.banks import (
    DenseConfig,
    Patches,
    SquashedLabels,
    as_rows,
    every,
    patch_labels,
)
from transfer.dense.confusion import EveryClass as EveryClass
from transfer.dense.confusion import (
    Tallier,
    Tally,
    best_names,
    miou_every,
    miou_labelled,
    pixel_accuracy,
    ratios,
)
from transfer.dense.drawing import draw, drawn_rows
from transfer.dense.neighbours import Answers, KeptLabels, measured_recall
from transfer.dense.patches import IGNORED, Labels, rare_patches, rarity, unpatchify
from transfer.dense.soft_labels import SoftLabels, without_void
from transfer.dense.views import BankView
from transfer.dense.votes import upsample

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(
    footprint=frozen,
    beside={"miou_identity": "without matching", "miou_labelled": "over labelled classes"},
    nearby=lambda spec, config, _: config.nearby(spec),
)
PUBLISHED_STD = (0.229, 0.224, 0.255)
"""The published evaluator's: 0.255 stands where ImageNet's deviation is 0.225."""


@dataclass(frozen=True, kw_only=True)
class Config(DenseConfig):
    """Everything that may move the number, beside how patches are made."""

    image_size: int = 512
    interpolation: Interpolation = "bilinear"
    views: int = 2
    """Random views of each training picture in the bank."""
    memory: int | None = 10_240_000
    """Patches of the bank; null keeps every one."""
    k: int = 30
    temperature: float = 0.02
    published_std: bool = True
    """Normalise by the published deviation, for models that are normalised as ImageNet is."""
    index: Approximate = field(default_factory=Approximate)

    def __post_init__(self) -> None:
        for name in ("views", "k", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings: k and temperature read the bank, the others see pictures again."""
        return {
            **{name: replace(self, k=k) for name, k in counts_nearby(self.k).items()},
            "half the temperature": replace(self, temperature=self.temperature / 2),
            "twice the temperature": replace(self, temperature=2 * self.temperature),
            **images_nearby(spec, self),
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return the published mIoU and the one without matching."""
    weights = plain_vit(weights)
    del out
    with process_group(config.machine.device) as ranks:
        return evaluate(as_published(weights, config), config, ranks)


def as_published(weights: VitWeights, config: Config) -> VitWeights:
    """Return the weights with the published evaluator's deviation, where they are normalised so."""
    spec = weights.spec
    plain = spec.mean == IMAGENET_MEAN and spec.std == IMAGENET_STD
    return weights.with_spec(std=PUBLISHED_STD) if config.published_std and plain else weights


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """One view of the training pictures: chosen patches and the labels of their pixels."""

    patches: Patches
    labels: KeptLabels


def evaluate(weights: VitWeights, config: Config, ranks: Ranks) -> TaskResult:
    """Fill the bank, search it for every val patch, score."""
    train, val = config.maps()
    classes = len(val.names) + val.first
    norm = FinalNorm(weights, pick_device(config.machine.device, ranks.local))
    parts = [part_of(weights, train, config, ranks, norm, view) for view in range(config.views)]
    shares = SoftLabels([part.labels for part in parts], classes)

    def pieces() -> Iterator[Floats]:
        for part in parts:
            patches = part.patches
            for _, tokens in patches.of(every(len(train.images)), at_once=patches.piece):
                yield as_rows(tokens, unit=True)

    def exact(queries: Floats, k: int) -> Any:
        return search_pieces(pieces(), queries, k, device=config.machine.device)

    squash = Squash(size=config.image_size, interpolation=config.interpolation)
    grid = patch_grid(weights, config.image_size)
    spec = PatchSpec(
        preprocess=squash, grid=grid, storage=config.storage, precision=config.precision
    )
    bank = extract_patches(weights, val.images, spec, config.machine, ranks=ranks)
    queries = Patches(bank, norm, device=config.machine.device)
    answers = Answers(find=exact, labels=np.empty((0, 0), np.uint8), unit=True)
    notes: dict[str, Any] = {
        "bank_patches": len(shares),
        "patches_of_each_view": parts[0].patches.bank.spec.per_image,
        "deviation": list(weights.spec.std),
    }
    if config.index.kind != "exact":
        index = build_from_pieces(pieces, len(shares), config.index)

        def approximate(queries: Floats, k: int) -> Any:
            return search_approximate(index, queries, k)

        first = as_rows(next(queries.of(every(len(val.images))))[1], unit=True)
        quick = Answers(find=approximate, labels=answers.labels, unit=True)
        notes |= measured_recall(quick, answers, first, config.k)
        answers = quick
    truth = patch_labels(val, SquashedLabels(squash=squash), weights.spec.patch_size)
    tally = label(answers, queries, shares, val, truth, config, classes=classes)
    return result(tally, val, notes, bank)


def part_of(
    weights: VitWeights,
    maps: LabelMaps,
    config: Config,
    ranks: Ranks,
    norm: FinalNorm,
    epoch: int,
) -> TrainingView:
    """Return one random view of every training picture; rare classes' patches where memory is short."""
    view = BankView(size=config.image_size, epoch=epoch, seed=config.seed)
    grid, patch = patch_grid(weights, config.image_size), weights.spec.patch_size
    classes = len(maps.names) + maps.first
    pixels = patch_labels(maps, view, patch)
    kept = chosen_patches(pixels, config, classes, epoch)
    spec = PatchSpec(
        preprocess=view, grid=grid, storage=config.storage, precision=config.precision, kept=kept
    )
    bank = extract_patches(weights, maps.images, spec, config.machine, ranks=ranks)
    per_image = pixels.shape[1]
    chosen = np.arange(per_image)[None] if kept is None else kept
    rows = (np.arange(len(pixels))[:, None] * per_image + chosen).ravel()
    return TrainingView(
        patches=Patches(bank, norm, device=config.machine.device),
        labels=KeptLabels(pixels, rows),
    )


def chosen_patches(
    pixels: Labels, config: Config, classes: int, epoch: int
) -> NDArray[np.int64] | None:
    """Return the patches of each picture that the memory has room for; None keeps every one."""
    pictures, per_image = pixels.shape[:2]
    if config.memory is None:
        return None
    count = max(1, config.memory // (pictures * config.views))
    if count >= per_image:
        return None
    rng = sequence_generator(config.seed, epoch, 6121)
    chosen = [
        rare_patches(
            rarity(without_void(np.asarray(image)), classes),
            rng.random(per_image, dtype=np.float32),
            count,
        )
        for image in pixels
    ]
    return np.stack(chosen)


def label(
    answers: Answers,
    queries: Patches,
    shares: SoftLabels,
    val: LabelMaps,
    truth: Labels,
    config: Config,
    *,
    classes: int,
) -> Tally:
    """Return the confusion of the val pictures at the network's resolution."""
    if config.k > len(shares):
        raise UserError(f"k = {config.k} neighbours of a bank of {len(shares)} patches")
    grid = queries.bank.spec.grid
    side = (config.image_size, config.image_size)
    tallier = Tallier(classes, drawn_rows(len(val.images)))
    bar = Progress("dense k-NN", len(val.images))
    for at, tokens in queries.of(every(len(val.images))):
        similarity, ids = answers.find(as_rows(tokens, unit=True), config.k)
        soft = shares.vote(similarity, ids, config.temperature).view(len(at), -1, classes)
        for picture, one in zip(at, soft, strict=True):
            predicted = upsample(one[None], grid, side)[0]
            wanted = unpatchify(np.asarray(truth[picture]), grid)
            # ADE20K's 0 is a class of the bank that the metric leaves out
            wanted = np.where(wanted == 0, IGNORED, wanted) if val.first else wanted
            tallier.add(val.images.names[picture], wanted.astype(np.uint8), predicted)
        bar.step(len(at))
    bar.close()
    return tallier.close()


def result(tally: Tally, val: LabelMaps, notes: dict[str, Any], bank: PatchBank) -> TaskResult:
    """Return the published mean over matched classes, and what stands beside it."""
    matched = tally.renamed(best_names(tally.total))
    names = ("not labelled", *val.names) if val.first else val.names
    found = 100 * ratios(tally.total)
    labelled = np.flatnonzero(tally.total.sum(axis=1) > 0)
    return TaskResult(
        metrics={
            "miou": miou_every(matched.total),
            "miou_identity": miou_every(tally.total),
            "miou_labelled": miou_labelled(tally.total),
            "aacc": pixel_accuracy(tally.total),
        },
        outcomes=[matched.outcomes(every=True)],
        figures=[Figure(title="IoU", values={names[i]: float(found[i]) for i in labelled})],
        pictures=draw(matched, bank, names, by_patch=False),
        notes=notes,
    )
