"""Confusion of predicted and true pixels, image by image, and the published means over classes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mimbench.scores.confusion import PARTS, Confusion
from mimbench.scores.outcomes import Statistic
from transfer.dense.patches import IGNORED, Labels

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class EveryClass(Confusion):
    """Pixel counts whose mean has other classes than those labelled: `counted` says which.

    A counted class that a resample holds no pixel of is 0 where `absent_is_zero`, else left out.
    """

    counted: NDArray[np.bool_]
    absent_is_zero: bool = False

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        more = {"counted": self.counted, "absent_is_zero": np.array(self.absent_is_zero)}
        return {**super().arrays(), **more}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "EveryClass":
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            suffix=str(arrays.get("suffix", "")),
            counted=arrays["counted"],
            absent_is_zero=bool(arrays["absent_is_zero"]),
            **{part: arrays[part] for part in PARTS},
        )

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean IoU over the counted classes."""
        both, either = (x[:, self.counted].astype(np.float64) for x in (self.intersect, self.union))

        def value(weights: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = (weights @ both) / (weights @ either)
            if self.absent_is_zero:
                ratio = np.nan_to_num(ratio)
            return 100 * np.nanmean(ratio, axis=1)

        return [Statistic(metric=f"miou{self.suffix}", images=self.images, value=value)]


class Seen(NamedTuple):
    """Classes of an image's pixels, 255 where there is none."""

    truth: Labels
    predicted: Labels


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The confusion of each image, kept sparsely."""

    images: tuple[str, ...]
    classes: int
    image: Counts
    """(entries,) as the three below: one for each pair of classes that an image holds."""
    true: Counts
    predicted: Counts
    """`classes` where it is no class."""
    pixels: Counts
    kept: Mapping[int, Seen] = field(default_factory=dict)
    """Image -> what was counted, of those that were to be kept."""

    @property
    def total(self) -> Counts:
        """Return pixels (true class, predicted class or none), all images together."""
        out = np.zeros((self.classes, self.classes + 1), dtype=np.int64)
        np.add.at(out, (self.true, self.predicted), self.pixels)
        return out

    def renamed(self, names: Counts) -> "Tally":
        """Return the tally with predicted class j called names[j]."""
        called = np.append(names, self.classes)[self.predicted]
        return Tally(
            images=self.images,
            classes=self.classes,
            image=self.image,
            true=self.true,
            predicted=called,
            pixels=self.pixels,
            kept={
                at: Seen(
                    seen.truth, np.append(names, IGNORED)[np.minimum(seen.predicted, self.classes)]
                )
                for at, seen in self.kept.items()
            },
        )

    def accuracy(self, image: int) -> float:
        """Return the percentage of an image's labelled pixels that are right."""
        mine = self.image == image
        right = self.pixels[mine & (self.true == self.predicted)].sum()
        return 100 * float(right / max(1, self.pixels[mine].sum()))

    def counts(self) -> Counts:
        """Return pixels (images, what agrees / either / predicted / labelled, classes)."""
        shape = (len(self.images), self.classes)
        both, predicted, labelled = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        agree, known = self.true == self.predicted, self.predicted < self.classes
        np.add.at(both, (self.image[agree], self.true[agree]), self.pixels[agree])
        np.add.at(predicted, (self.image[known], self.predicted[known]), self.pixels[known])
        np.add.at(labelled, (self.image, self.true), self.pixels)
        return np.stack([both, labelled + predicted - both, predicted, labelled], axis=1)

    def outcomes(self, *, every: bool) -> EveryClass:
        """Return what intervals are made from: a mean over every class, or those that occur."""
        parts = dict(zip(PARTS, self.counts().transpose(1, 0, 2), strict=True))
        occurs = parts["union"].sum(axis=0) > 0
        return EveryClass(
            images=self.images,
            counted=np.ones_like(occurs) if every else occurs,
            absent_is_zero=every,
            **parts,
        )


class Tallier:
    """Adds one image after the other."""

    def __init__(self, classes: int, keep: Collection[int] = ()) -> None:
        self.classes, self.keep = classes, keep
        self.kept: dict[int, Seen] = {}
        self.images: list[str] = []
        self.entries: list[Counts] = []

    def add(self, name: str, truth: Labels, predicted: Labels) -> None:
        """Count one image; pixels without a true class do not count."""
        found = confusion(truth, predicted, self.classes)
        true, guess = np.nonzero(found)
        if len(self.images) in self.keep:
            self.kept[len(self.images)] = Seen(truth, predicted)
        image = np.full(len(true), len(self.images))
        self.images.append(name)
        self.entries.append(np.stack([image, true, guess, found[true, guess]]))

    def close(self) -> Tally:
        """Return all counts."""
        image, true, predicted, pixels = np.concatenate(self.entries, axis=1)
        return Tally(
            images=tuple(self.images),
            classes=self.classes,
            image=image,
            true=true,
            predicted=predicted,
            pixels=pixels,
            kept=self.kept,
        )


def confusion(truth: Labels, predicted: Labels, classes: int) -> Counts:
    """Return pixel counts (true class, predicted class or none)."""
    seen = truth != IGNORED
    # a prediction that is no class (a bank may vote for `ignored`) is wrong everywhere
    guess = np.minimum(predicted[seen].astype(np.int64), classes)
    flat = truth[seen].astype(np.int64) * (classes + 1) + guess
    return np.bincount(flat, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


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


def best_names(total: Counts) -> Counts:
    """Return which true class each predicted one is called for the largest mean IoU.

    Hummingbird's evaluator re-assigns classes so, a relic of unsupervised segmentation: it can only
    raise the mean.
    """
    square = total[:, : len(total)]
    either = square.sum(axis=1, keepdims=True) + square.sum(axis=0, keepdims=True) - square
    true, predicted = linear_sum_assignment(-square / np.maximum(either, 1))
    names = np.zeros(len(total), dtype=np.int64)
    names[predicted] = true
    return names


def pixel_accuracy(total: Counts) -> float:
    """Return the percentage of labelled pixels that are right."""
    return 100 * float(np.trace(total[:, : len(total)]) / max(1, total.sum()))
