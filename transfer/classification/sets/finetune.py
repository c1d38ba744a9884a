"""Full fine-tuning on another set, as DINO, iBOT and AttMask do it: xfer-ft-*.

DeiT's recipe: AdamW, learning rate x batch / 512, weight decay 0.05, cosine by epoch to 1e-5, five
epochs of warm-up from 1e-6, drop path 0.1, no layer decay, class token; RandAugment, mixup 0.8, cutmix
1.0, smoothing 0.1, erasing 0.25; an epoch shows a third of the images, three views of each. The sets
differ in learning rate and length. Images of 32 pixels are enlarged by the crop. Published numbers are
the best of the epochs that were looked at, on the test part: here the last one is the table's number,
and the best stands beside it. Expected on CIFAR-10: AttMask and iBOT ViT-S/16 98.8.

    python -m transfer.classification.sets.finetune checkpoint.pth --benchmark xfer-ft-cifar10 --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.sets.finetune"))

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import Self

from mimbench.data.contents import Splits
from mimbench.data.sets import read_set
from mimbench.data.sources import Source
from mimbench.model import Weights
from mimbench.scores.hits import Hits
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.training.batches import Repeats
from mimbench.training.optim import scaled_lr
from transfer.classification import tuner
from transfer.classification.finetune import train_classifier
from transfer.classification.recipes import FinetuneRecipe, Name
from transfer.classification.sets.outcomes import SetHits as SetHits
from transfer.classification.sets.splits import FOLDER, Rule, score_of
from transfer.classification.staged_recipes import StagedName

VERSION = 1
MAIN_METRIC = "score"
TRAITS = Traits(effort=1, whole_folder=True, canonical=lambda config: config.canonical())


@dataclass(frozen=True, kw_only=True)
class Config(tuner.Config):
    """Everything that may move the number; null takes the recipe's value."""

    published: str = FOLDER
    """Which set; `folder`: train and test of any folder."""
    rule: Rule = "published"
    """How the set is scored; its own rule, or another."""
    recipe: Name | StagedName = "deit"
    min_lr: float = 1e-5
    warmup_from: float = 1e-6
    mixed: int = 96
    """Images that share a draw of mixup and cutmix: one GPU's share in the published runs."""
    views: int = 3
    """Of each image that an epoch shows; 1: every image once."""
    unit: int = 256
    """An epoch is cut down to a multiple of this many views."""
    eval_every: int = 50

    def __post_init__(self) -> None:
        if self.views < 1 or self.unit < 1:
            raise ValueError(f"views {self.views} and unit {self.unit} need to be 1 or more")
        if self.source != Source():
            raise ValueError("source is the set's own affair here: published names the set")
        if score_of(self.published, self.rule) == "tags":
            raise ValueError(
                f"'{self.published}' shows several classes in an image: no single label"
            )
        super().__post_init__()

    def canonical(self) -> Self:
        """Return the same, without where images lie and how often is looked."""
        return replace(super().canonical(), published=self.published)

    def resolve(self, width: int, model: str = "") -> FinetuneRecipe:
        """Return the recipe with this configuration's own values."""
        found = super().resolve(width, model)
        return replace(found, mixed=self.mixed) if self.recipe == "deit" else found

    def schedule(self, recipe: FinetuneRecipe) -> Callable[[float], float]:
        """Return the learning rate by whole epochs."""
        peak = scaled_lr(recipe.lr, recipe.batch) if recipe.scaled else recipe.lr
        return EpochSchedule(
            peak=peak,
            epochs=recipe.epochs,
            warmup=recipe.warmup,
            start=self.warmup_from,
            floor=self.min_lr,
        )

    def repeats(self, recipe: FinetuneRecipe) -> Repeats | None:
        """Return repeated augmentation."""
        if self.views == 1:
            return None
        return Repeats(views=self.views, unit=self.unit, group=min(recipe.mixed, recipe.batch))


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """timm's cosine with warm-up as DeiT steps it: once an epoch, the warm-up taken out of the cosine."""

    peak: float
    epochs: int
    warmup: int
    start: float
    floor: float

    def __call__(self, epoch: float) -> float:
        """Return the learning rate of the epoch."""
        whole = math.floor(epoch)
        if whole < self.warmup:
            return self.start + whole * (self.peak - self.start) / self.warmup
        part = min(whole / self.epochs, 1.0)
        return self.floor + 0.5 * (self.peak - self.floor) * (1 + math.cos(math.pi * part))


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return the score of the reported epoch by the set's rule, and top-1."""
    splits = read_set(config.published, config.data, Splits)
    train = config.subset.of(splits.train)
    with process_group(config.machine.device) as ranks:
        found = train_classifier(weights, train, splits.test, config, out, ranks)
    [hits] = found.outcomes
    assert isinstance(hits, Hits)
    rule = score_of(config.published, config.rule)
    kept = SetHits(
        images=hits.images,
        labels=hits.labels,
        best=hits.top5[:, 0],
        per_class=rule == "per class",
    )
    score = next(s.whole() for s in kept.statistics() if s.metric == "score")
    notes = {**found.notes, **splits.counts(), "rule": rule, "views": config.views}
    return TaskResult(metrics={**found.metrics, "score": score}, outcomes=[kept], notes=notes)
