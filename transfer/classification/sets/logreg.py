"""Logistic regression on frozen features of one published set: xfer-logreg-*.

DINOv2's evaluation: class token after the final norm, no augmentation; C in 45 logarithmic steps from
1e-6 to 1e5, chosen on the official validation part or on a random 10 % of train, refitted on both. The
table's number is by the set's rule: the share of right answers, its mean over classes (Aircraft, Pets,
Caltech-101, Flowers), or VOC2007's 11-point mAP of one regression a class.

    python -m transfer.classification.sets.logreg checkpoint.pth --benchmark xfer-logreg-flowers --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.sets.logreg"))

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from mimbench.data.contents import Splits
from mimbench.data.preprocess import Interpolation, Preprocess
from mimbench.data.sets import read_set
from mimbench.features.bank import BankSpec, Choice, FeatureBank
from mimbench.features.extract import extract
from mimbench.features.logistic.grid import Grid
from mimbench.features.nearby import images_nearby, penalties_nearby, poolings_nearby
from mimbench.features.protocol import from_main
from mimbench.model import Spec, Weights
from mimbench.system.runtime import Precision, Ranks, pick_device, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import stored_features
from transfer.classification.sets.fitting import fit_and_score
from transfer.classification.sets.outcomes import Kept
from transfer.classification.sets.outcomes import SetHits as SetHits
from transfer.classification.sets.outcomes import SetTags as SetTags
from transfer.classification.sets.splits import FOLDER, Rule, score_of

VERSION = 1
MAIN_METRIC = "score"
TRAITS = Traits(
    footprint=stored_features,
    whole_folder=True,
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, notes: config.nearby(spec, notes),
)


@dataclass(frozen=True, kw_only=True)
class SetFeatures:
    """How features are made of images of any set."""

    image_size: int = 224
    resize: int | None = 256
    """Length of the shorter side before the centre crop; null leaves the image as it is."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"

    def spec(self) -> BankSpec:
        """Return what is computed: the last block's vectors."""
        preprocess = Preprocess(
            size=self.image_size, resize=self.resize, interpolation=self.interpolation
        )
        return BankSpec(preprocess=preprocess, blocks=4, precision=self.precision)

    def banks(
        self, weights: Weights, splits: Splits, machine: Machine, ranks: Ranks
    ) -> tuple[FeatureBank, FeatureBank]:
        """Return the complete banks of train and test."""
        train = extract(weights, splits.train, self.spec(), machine, ranks=ranks)
        return train, extract(weights, splits.test, self.spec(), machine, ranks=ranks)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that may move the number."""

    published: str = FOLDER
    """Which set; `folder`: train and test of any folder."""
    rule: Rule = "published"
    """How the set is scored; its own rule, or another."""
    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    features: SetFeatures = field(default_factory=SetFeatures)
    grid: Grid = field(default_factory=Grid)
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("choices needs at least one value")
        score_of(self.published, self.rule)

    def canonical(self) -> Self:
        """Return the main number's own choice of features."""
        return replace(self, choices=self.choices[:1])

    def nearby(self, spec: Spec, notes: Mapping[str, Any]) -> dict[str, Self]:
        """Return neighbouring settings: pooling and C read the bank, the others see every image again."""
        chosen = self.choices[0]
        main = replace(self, choices=(chosen,))
        poolings, images = poolings_nearby(chosen), images_nearby(spec, self.features)
        grids = penalties_nearby(self.grid, notes.get(chosen, {}))
        return {
            **{name: replace(main, choices=(choice,)) for name, choice in poolings.items()},
            **{name: replace(main, grid=grid) for name, grid in grids.items()},
            **{name: replace(main, features=features) for name, features in images.items()},
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return the set's score in percent for each feature choice."""
    del out
    splits = read_set(config.published, config.data, Splits)
    with process_group(config.machine.device) as ranks:
        banks = config.features.banks(weights, splits, config.machine, ranks)
        device = str(pick_device(config.machine.device, ranks.local))
        return from_main(lambda: _evaluate(*banks, splits, config, device), ranks)


def _evaluate(
    train: FeatureBank, test: FeatureBank, splits: Splits, config: Config, device: str
) -> TaskResult:
    score = score_of(config.published, config.rule)
    metrics: dict[str, float] = {}
    notes: dict[str, Any] = {**splits.counts(), "rule": score}
    found: list[Kept] = []
    for choice in config.choices:
        x, asked = (bank.load(choice).to(device) for bank in (train, test))
        kept, notes[choice] = fit_and_score(x, asked, splits, score, config.grid, config.seed)
        found.append(kept)
        metrics |= {f"{choice}_{s.metric}": s.whole() for s in kept.statistics()}
    metrics |= {s.metric: s.whole() for s in found[0].statistics()}
    return TaskResult(metrics=metrics, outcomes=[found[0]], notes=notes)
