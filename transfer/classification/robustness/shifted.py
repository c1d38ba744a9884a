"""A classifier on other images than it was tuned for: ReaL, V2, A, R, Sketch, ObjectNet.

Nothing is trained: the head is that of a finished run (`head: in-ft-hpm`), with its own evaluation
transform. ReaL (Beyer et al. 2020) scores val by every label that people gave; V2 (Recht et al. 2019) is
a new val set; A (1907.07174) and R (2006.16241) let their 200 classes compete; ObjectNet (Barbu et al.
2019) its 113 classes that overlap with ImageNet. Beside top-1 stands the drop from clean images: the
same ones for ReaL, else val images of the same classes scored by the same rule.

    python -m transfer.classification.robustness.shifted checkpoint.pth --benchmark rob-v2 --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.robustness.shifted"))

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mimbench.features.protocol import by_content
from mimbench.model import Weights
from mimbench.scores.figures import Picture
from mimbench.system.runtime import process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import frozen
from transfer.classification.robustness import sets
from transfer.classification.robustness.drops import DropFromClean
from transfer.classification.robustness.finished import HeadRun, find_cell
from transfer.classification.robustness.pictures import mistakes
from transfer.classification.robustness.scoring import HeadJudge, hits
from transfer.classification.robustness.sets import TestSet

VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    footprint=frozen,
    uses=lambda config: (config.head,),
    canonical=lambda config: config.canonical(),
    beside={"drop": "drop from clean"},
)

Kind = Literal["real", "v2", "a", "r", "sketch", "objectnet"]
Clean = tuple[tuple[str, ...], NDArray[np.float64]]
"""Names of clean images, and which of them were right."""
__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "DropFromClean", "run"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which set, whose head, and how answers are counted."""

    kind: Kind
    head: str
    """The benchmark whose finished run leaves the head."""
    part: str = "."
    """The folder of class folders in the data set; for ReaL the val images."""
    rule: Literal["max", "challenge"] = "max"
    """ObjectNet: 113 groups compete by their largest logit (wise-ft), or all classes do and the answer
    has to be one of the folder's (the challenge's kit)."""
    table: Path | None = None
    """ReaL's labels or ObjectNet's classes, where not the published ones; as seen from `data`."""
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def canonical(self) -> Self:
        """Return the same with what cannot move the number set back."""
        rule = self.rule if self.kind == "objectnet" else "max"
        table = None if self.table is None else by_content(self.data / self.table)
        return replace(self, rule=rule, table=table)

    def open(self, cell: HeadRun) -> TestSet:
        """Return the set, its labels in the head's classes."""
        table = None if self.table is None else self.data / self.table
        if self.kind == "real":
            return sets.relabelled(cell.val(), sets.real_labels(table))
        if self.kind == "v2":
            return sets.numbered(self.data, self.part, cell.classes)
        if self.kind == "objectnet":
            groups = sets.overlapping(table)
            return sets.objects(self.data, self.part, groups, rule=self.rule)
        names = cell.class_names()
        known = self.kind != "sketch" and cell.classes == sets.CLASSES
        published = sets.published_folders(self.kind) if known else ()
        test = sets.by_folder(self.data, self.part, names, published=published)
        return replace(test, restrict=self.kind != "sketch")


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 on the set, on clean images, and the drop between them."""
    cell = find_cell(out, config.head, weights, seed=config.seed)
    test = config.open(cell)
    with process_group(config.machine.device) as ranks:
        judge = HeadJudge.of(cell, weights, config.machine, ranks)
        predicted = judge.score(test, config.kind)
        right = hits(predicted, test.images.labels, test.groups)
        names, clean_right = _clean(test, predicted, config, judge)
    found = DropFromClean(
        images=tuple(test.images.names),
        predicted=predicted,
        right=right,
        clean_images=names,
        clean_right=clean_right,
        paired=config.kind == "real",
    )
    pictures: list[Picture] = mistakes(test, predicted, right, cell)
    return TaskResult(
        metrics=found.metrics(),
        outcomes=[found],
        pictures=pictures,
        notes={
            "head": cell.described(),
            "images": len(right),
            "classes": len(np.unique(test.images.labels)),
            "clean": f"{len(names):,} "
            + ("same images: paired" if found.paired else "other images of the same classes"),
        },
        built_on=cell.built_on(),
        ran=cell.changed(),
    )


def _clean(test: TestSet, predicted: NDArray[np.int64], config: Config, judge: HeadJudge) -> Clean:
    """Return how clean images of the same classes fare under the same rule."""
    cell = judge.cell
    if config.kind == "real":
        label = dict(zip(cell.hits.images, cell.hits.labels, strict=True))
        own = np.array([label[name] for name in test.images.names])
        return tuple(test.images.names), (predicted == own).astype(np.float64)
    everything = not test.restrict and {c for g in test.groups for c in g} == set(
        range(cell.classes)
    )
    if everything and cell.faithful:
        # the finished run has answered for all of them already
        return cell.hits.images, cell.hits.right()[0]
    clean = test.part_of(cell.val())
    again = judge.score(clean, "clean images of the same classes")
    return tuple(clean.images.names), hits(again, clean.images.labels, clean.groups)
