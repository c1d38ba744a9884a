"""The Backgrounds Challenge on ImageNet-9: foregrounds on their own, others' and no backgrounds.

Xiao et al. 2020 (2006.09994). Nine classes hold 370 of ImageNet's; a prediction is the argmax over all
1000, then mapped: the other 630 are always wrong. Images are 224 pixels already. The background gap is
top-1 on mixed_same (background of the same class) minus mixed_rand (of a random class). AttMask's table
has all eight variations. Nothing is trained: the head is that of a finished run.

    python -m transfer.classification.robustness.backgrounds checkpoint.pth --benchmark rob-in9 --data DIR
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.robustness.backgrounds"))

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.data.lists import ImageList, read_folder
from mimbench.doctor.shifted import VARIATIONS, Variation
from mimbench.model import Weights
from mimbench.scores.figures import Figure
from mimbench.scores.outcomes import Outcomes, Statistic
from mimbench.scores.shares import mean_share
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import frozen
from transfer.classification.robustness.finished import find_cell
from transfer.classification.robustness.maps import in9_classes
from transfer.classification.robustness.pictures import mistakes
from transfer.classification.robustness.scoring import HeadJudge, hits
from transfer.classification.robustness.sets import TestSet

VERSION = 1
MAIN_METRIC = "mixed_rand"
SAME, RANDOM, GAP = "mixed_same", "mixed_rand", "gap"
TRAITS = Traits(
    footprint=frozen,
    uses=lambda config: (config.head,),
    beside={GAP: "background gap", "original": "original", SAME: "mixed same"},
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Whose head, and which variations."""

    head: str
    """The benchmark whose finished run leaves the head."""
    variations: tuple[Variation, ...] = VARIATIONS
    split: str = "val"
    table: Path | None = None
    """ImageNet class -> class of nine, where not the published map; as seen from `data`."""
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if lacking := {SAME, RANDOM} - set(self.variations):
            raise ValueError(f"variations lack {', '.join(sorted(lacking))}: the gap takes both")


@dataclass(frozen=True, kw_only=True, eq=False)
class Backgrounds(Outcomes):
    """Which images of which variation were right; the gap resamples its two variations as one pool."""

    images: tuple[str, ...]
    """variation/class/file."""
    right: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse answers that do not belong to the images."""
        if self.right.shape != (len(self.images),):
            raise ValueError(f"right of shape {self.right.shape} for {len(self.images)} images")

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        return {"images": np.array(self.images, np.str_), "right": self.right}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Backgrounds:
        """Return what `arrays` described."""
        return cls(images=tuple(map(str, arrays["images"])), right=arrays["right"])

    def statistics(self) -> Sequence[Statistic]:
        """Return top-1 of each variation, and the background gap."""
        of = np.array([name.partition("/")[0] for name in self.images])
        found = [self._share(str(name), of == name) for name in dict.fromkeys(of)]
        return [*found, self._gap(of == SAME, of == RANDOM)]

    def metrics(self) -> dict[str, float]:
        """Return every metric on all images."""
        return {s.metric: s.whole() for s in self.statistics()}

    def _share(self, name: str, mine: NDArray[np.bool_]) -> Statistic:
        return mean_share(name, tuple(np.array(self.images)[mine]), self.right[mine])

    def _gap(self, same: NDArray[np.bool_], other: NDArray[np.bool_]) -> Statistic:
        both = same | other
        right, same, other = self.right[both], same[both], other[both]

        def value(weights: np.ndarray) -> np.ndarray:
            tops = [
                weights[:, part] @ right[part] / weights[:, part].sum(axis=1)
                for part in (same, other)
            ]
            return 100 * (tops[0] - tops[1])

        return Statistic(metric=GAP, images=tuple(np.array(self.images)[both]), value=value)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 of every variation, and the background gap."""
    cell = find_cell(out, config.head, weights, seed=config.seed)
    names, groups = in9_classes("in_to_in9" if config.table is None else config.data / config.table)
    images: list[str] = []
    right: list[NDArray[np.float64]] = []
    pictures = []
    with process_group(config.machine.device) as ranks:
        judge = HeadJudge.of(cell, weights, config.machine, ranks)
        for variation in config.variations:
            listed = numbered_classes(
                read_folder(config.data / variation, config.split), len(names)
            )
            # every class competes: a dog called a tree is wrong
            predicted = judge.predict(listed, pixels=judge.ready_made(), label=variation)
            right.append(hits(predicted, listed.labels, groups))
            images += [f"{variation}/{name}" for name in listed.names]
            if variation == MAIN_METRIC:
                test = TestSet(images=listed, groups=groups)
                pictures = mistakes(test, predicted, right[-1], cell)
    found = Backgrounds(images=tuple(images), right=np.concatenate(right))
    metrics = found.metrics()
    return TaskResult(
        metrics=metrics,
        outcomes=[found],
        figures=[
            Figure(title="top-1 by variation", values={v: metrics[v] for v in config.variations})
        ],
        pictures=pictures,
        notes={
            "head": cell.described(),
            "images": {v: len(r) for v, r in zip(config.variations, right, strict=True)},
            "classes_without_a_place": cell.classes - sum(map(len, groups)),
        },
        built_on=cell.built_on(),
        ran=cell.changed(),
    )


def numbered_classes(images: ImageList, classes: int) -> ImageList:
    """Return the images with the classes that their folders' numbers say: 00_dog is 0."""
    numbers = [name.partition("_")[0] for name in images.classes]
    wrong = [
        name
        for name, number in zip(images.classes, numbers, strict=True)
        if not number.isdecimal() or int(number) >= classes
    ]
    if wrong or len(numbers) != classes:
        raise UserError(
            f"{images.where} has the folders {', '.join(images.classes[:12])}; expected {classes} of them, "
            f"from 00_ to {classes - 1:02d}_"
        )
    return images.relabel(np.array([int(n) for n in numbers], dtype=np.int64)[images.labels])
