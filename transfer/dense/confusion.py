"""Confusion of predicted and true pixels, image by image, and the published means over classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mimbench.system.files import atomic_path
from transfer.dense.patches import IGNORED, Labels

Counts = NDArray[np.int64]


def confusion(truth: Labels, predicted: Labels, classes: int) -> Counts:
    """Return pixel counts (true class, predicted class); pixels without a true class do not count."""
    seen = truth != IGNORED
    # a prediction that is no class (a bank may vote for `ignored`) is wrong everywhere
    guess = np.minimum(predicted[seen].astype(np.int64), classes)
    flat = truth[seen].astype(np.int64) * (classes + 1) + guess
    return np.bincount(flat, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts of every image, enough for any mean over any resample of the images."""

    images: tuple[str, ...]
    intersect: Counts
    """(images, classes), as the three below."""
    union: Counts
    predicted: Counts
    labelled: Counts
    total: Counts
    """(true class, predicted class or none), all images together."""

    def write(self, path: Path) -> None:
        """Write the counts of each image, atomically."""
        names = np.asarray(self.images, dtype=np.str_)
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                images=names,
                intersect=self.intersect,
                union=self.union,
                predicted=self.predicted,
                labelled=self.labelled,
            )


class Tallier:
    """Adds one image after the other."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.images: list[str] = []
        self.rows: list[Counts] = []
        self.total = np.zeros((classes, classes + 1), dtype=np.int64)

    def add(self, name: str, truth: Labels, predicted: Labels) -> None:
        """Count one image."""
        found = confusion(truth, predicted, self.classes)
        both, labelled = np.diagonal(found), found.sum(axis=1)
        guessed = found[:, : self.classes].sum(axis=0)
        self.images.append(name)
        self.rows.append(np.stack([both, labelled + guessed - both, guessed, labelled]))
        self.total += found

    def close(self) -> Tally:
        """Return all counts."""
        stacked = np.stack(self.rows)
        parts = dict(
            zip(
                ("intersect", "union", "predicted", "labelled"),
                stacked.transpose(1, 0, 2),
                strict=True,
            )
        )
        return Tally(images=tuple(self.images), total=self.total, **parts)


def ratios(total: Counts) -> NDArray[np.float64]:
    """Return each class's IoU, not a number where a class is neither true nor predicted."""
    square = total[:, : len(total)]
    both = np.diagonal(square)
    either = total.sum(axis=1) + square.sum(axis=0) - both
    with np.errstate(invalid="ignore"):
        return both / either


def miou_occurring(total: Counts) -> float:
    """Return mIoU in percent over the classes that occur in truth or prediction (CAPI's mean)."""
    return 100 * float(np.nanmean(ratios(total)))


def miou_labelled(total: Counts) -> float:
    """Return mIoU in percent over the classes that occur in the truth."""
    return 100 * float(ratios(total)[total.sum(axis=1) > 0].mean())


def miou_every(total: Counts) -> float:
    """Return mIoU in percent over all classes, those that occur nowhere counted as 0 (Hummingbird's)."""
    return 100 * float(np.nan_to_num(ratios(total)).mean())


def matched(total: Counts) -> Counts:
    """Return the confusion after predicted classes are re-assigned to true ones for the largest IoU.

    Hummingbird's evaluator does so, a relic of unsupervised segmentation. It can only raise the mean.
    """
    square = total[:, : len(total)]
    either = square.sum(axis=1, keepdims=True) + square.sum(axis=0, keepdims=True) - square
    rows, columns = linear_sum_assignment(-square / np.maximum(either, 1))
    out = total.copy()
    out[:, rows] = square[:, columns]
    return out


def pixel_accuracy(total: Counts) -> float:
    """Return the percentage of labelled pixels that are right."""
    return 100 * float(np.trace(total[:, : len(total)]) / max(1, total.sum()))
