"""Which class the head of a finished run answers for each image, and whether that is right."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Pixels, Preprocess
from mimbench.model import Weights
from mimbench.scores.metrics import rank_classes
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, pick_device
from mimbench.task import Machine
from transfer.classification.robustness.classifiers import Classifier, classifier_of
from transfer.classification.robustness.finished import HeadRun
from transfer.classification.robustness.maps import Groups
from transfer.classification.robustness.sets import TestSet
from transfer.classification.training import answers

logger = logging.getLogger(__name__)
CHECKED = 128
"""Clean images on which the head must answer as its finished run did."""
AGREEMENT = 0.97
"""Of them; half precision in other batches turns a few that are nearly even."""
PUBLISHED_SIDE = 224


@dataclass(frozen=True, kw_only=True)
class BorderCut:
    """Cuts a border off before anything else."""

    inner: Preprocess
    border: int

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, size, size) uint8."""
        b = self.border
        return self.inner(image.crop((b, b, image.width - b, image.height - b)), index)

    def key(self) -> dict[str, Any]:
        """Return what identifies the rule."""
        return {"border": self.border, **self.inner.key()}


@dataclass(frozen=True, kw_only=True)
class HeadJudge:
    """A head at work: answers for images, on as many processes as run."""

    cell: HeadRun
    classifier: Classifier
    machine: Machine
    ranks: Ranks

    @classmethod
    def of(cls, cell: HeadRun, weights: Weights, machine: Machine, ranks: Ranks) -> "HeadJudge":
        """Return the head of a finished run, after a look whether it still answers as it did there."""
        device = pick_device(machine.device, ranks.local)
        judge = cls(
            cell=cell,
            classifier=classifier_of(cell, weights, device),
            machine=machine,
            ranks=ranks,
        )
        judge.check()
        return judge

    def predict(
        self,
        images: ImageList,
        *,
        pixels: Pixels | None = None,
        among: Sequence[int] = (),
        label: str = "images",
    ) -> NDArray[np.int64]:
        """Return the class answered for each image (n,).

        Args:
            images: The list.
            pixels: How they are read; by default as the head's own val images were.
            among: The only classes that compete; all where empty.
            label: Name of the progress line.
        """
        device = self.classifier.device
        chosen = torch.tensor(sorted(among), dtype=torch.int64, device=device)

        def answer(batch: Tensor) -> Tensor:
            logits = self.classifier.logits(batch)
            if not len(chosen):
                return rank_classes(logits, 1)
            return chosen[rank_classes(logits[:, chosen], 1)]

        found = answers(
            answer,
            images,
            pixels or self.classifier.preprocess,
            self.machine,
            ranks=self.ranks,
            width=1,
            label=label,
        )
        return found[:, 0].numpy()

    def score(self, test: TestSet, label: str = "images") -> NDArray[np.int64]:
        """Return the class answered for each image of a test set."""
        among = sorted({c for group in test.groups for c in group}) if test.restrict else ()
        pixels = (
            BorderCut(inner=self.classifier.preprocess, border=test.border) if test.border else None
        )
        return self.predict(test.images, pixels=pixels, among=among, label=label)

    def ready_made(self) -> Preprocess:
        """Return how images that are 224 pixels already are read: cropped, never resized."""
        own = self.classifier.preprocess
        resize = None if own.size <= PUBLISHED_SIDE else own.size
        return Preprocess(size=own.size, resize=resize, interpolation=own.interpolation)

    def check(self) -> None:
        """Raise unless the head answers clean images as its finished run did."""
        if not self.cell.faithful or not self.cell.config.data.is_dir():
            return
        images = self.cell.val()
        rows = np.unique(np.linspace(0, len(images) - 1, CHECKED).astype(int))
        found = self.predict(images.subset(rows), label="clean images, again")
        same = float((found == self.cell.hits.top5[rows, 0]).mean())
        if same < AGREEMENT:
            raise UserError(
                f"the head in {self.cell.folder} answers {100 * same:.0f} % of {len(rows)} clean images as its "
                f"finished run did: its state and its result are not of one run; run "
                f"{self.cell.run.benchmark} again (--fresh)"
            )
        logger.info("the head answers %.1f %% of clean images as it did", 100 * same)


def hits(
    predicted: NDArray[np.int64], labels: NDArray[np.int64], groups: Groups
) -> NDArray[np.float64]:
    """Return 1 where the class that was answered is one of those that are right."""
    pairs = zip(predicted, labels, strict=True)
    return np.array([float(p in groups[label]) for p, label in pairs], dtype=np.float64)
