"""Logistic regression over several sets, and the mean of their scores: xfer-logreg-12.

The twelve of the SSL-transfer line, as DINOv2 takes them: Food-101, CIFAR-10, CIFAR-100, SUN397, Cars,
Aircraft, VOC2007, DTD, Pets, Caltech-101, Flowers, CUB; each as `xfer-logreg-*` scores it alone, from
the same features. Every one has to be there: a mean of eleven is another number.

    python -m transfer.classification.sets.twelve checkpoint.pth --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.sets.twelve"))

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from mimbench.data.contents import Splits
from mimbench.data.sets import find_set, published, read_set
from mimbench.features.bank import Choice
from mimbench.features.logistic.grid import Grid
from mimbench.features.nearby import images_nearby, poolings_nearby
from mimbench.features.protocol import from_main
from mimbench.model import Spec, Weights
from mimbench.scores.figures import Figure
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.runtime import pick_device, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import stored_features
from transfer.classification.sets.fitting import fit_and_score
from transfer.classification.sets.logreg import SetFeatures
from transfer.classification.sets.outcomes import Kept
from transfer.classification.sets.outcomes import SetMean as SetMean

VERSION = 1
MAIN_METRIC = "mean"
TRAITS = Traits(
    footprint=stored_features,
    nearby=lambda spec, config, _: config.nearby(spec),
)
TWELVE = (
    "food", "cifar10", "cifar100", "sun397", "cars", "aircraft", "voc2007", "dtd", "pets",
    "caltech101", "flowers", "cub",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that may move the number."""

    sets: tuple[str, ...] = TWELVE
    choice: Choice = "cls"
    features: SetFeatures = field(default_factory=SetFeatures)
    grid: Grid = field(default_factory=Grid)
    data: Path
    """Holds a folder for each set."""
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in published():
                raise UserError(f"no published set '{name}'" + did_you_mean(name, published()))
        if len(set(self.sets)) < max(2, len(self.sets)):
            raise ValueError(f"sets {list(self.sets)} need two different ones at least")
        if self.data != Path() and (
            missing := [n for n in self.sets if not find_set(n, self.data)]
        ):
            raise UserError(
                f"{self.data} lacks {len(missing)} of the {len(self.sets)} sets: {', '.join(missing)}; "
                "`python -m mimbench doctor --data DIR` says where they come from"
            )

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings of every set at once."""
        poolings, images = poolings_nearby(self.choice), images_nearby(spec, self.features)
        return {
            **{name: replace(self, choice=choice) for name, choice in poolings.items()},
            **{name: replace(self, features=features) for name, features in images.items()},
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return the mean score in percent, and each set's."""
    del out
    parts: dict[str, Kept] = {}
    notes: dict[str, Any] = {}
    with process_group(config.machine.device) as ranks:
        device = pick_device(config.machine.device, ranks.local)
        for name in config.sets:
            splits = read_set(name, find_set(name, config.data) or config.data / name, Splits)
            banks = config.features.banks(weights, splits, config.machine, ranks)

            def one(
                splits: Splits = splits, banks: Any = banks, name: str = name
            ) -> tuple[Kept, dict[str, Any]]:
                train, test = (bank.load(config.choice).to(device) for bank in banks)
                rule = published()[name].score
                return fit_and_score(train, test, splits, rule, config.grid, config.seed)

            parts[name], notes[name] = from_main(one, ranks)
    outcomes = SetMean(parts=parts)
    metrics = {s.metric: s.whole() for s in outcomes.statistics()}
    values = {published()[name].title: metrics[name] for name in config.sets}
    return TaskResult(
        metrics=metrics,
        outcomes=[outcomes],
        figures=[Figure(title="score", values=values)],
        notes=notes,
    )
