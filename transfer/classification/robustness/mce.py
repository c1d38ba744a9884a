"""The mean corruption error, and the outcomes that determine it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.scores.outcomes import Outcomes, Statistic
from mimbench.scores.shares import mean_share
from transfer.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES
from transfer.classification.robustness.maps import alexnet_errors


def levels() -> list[tuple[str, int]]:
    """Return every corruption at every severity, in the order of the outcomes' rows."""
    return [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def corruption_error(name: str, errors: Sequence[float]) -> float:
    """Return a corruption's error over all severities, divided by AlexNet's."""
    reference = alexnet_errors()[name]
    if len(errors) != len(reference):
        raise ValueError(f"{len(errors)} severities of {name}, expected {len(reference)}")
    return float(sum(errors) / sum(reference))


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over corruptions of their normalised errors; 1 is AlexNet.

    Args:
        errors: Corruption -> top-1 error, from 0 to 1, at severities 1 to 5.
    """
    return float(np.mean([corruption_error(name, e) for name, e in errors.items()]))


@dataclass(frozen=True, kw_only=True, eq=False)
class CorruptionErrors(Outcomes):
    """Which images were right, clean and under each corruption: all paired, being the same images."""

    images: tuple[str, ...]
    right: NDArray[np.bool_]
    """(75, n) in the order of `levels`."""
    clean_right: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Refuse answers that do not belong to the images."""
        count = len(self.images)
        if self.right.shape != (len(levels()), count) or self.clean_right.shape != (count,):
            raise ValueError(
                f"answers of shape {self.right.shape} and {self.clean_right.shape} for {count} images "
                f"under {len(levels())} corruptions"
            )

    def errors(self) -> dict[str, list[float]]:
        """Return corruption -> top-1 error at each severity."""
        rates = 1 - self.right.mean(axis=1).reshape(len(CORRUPTIONS), len(SEVERITIES))
        return {name: list(map(float, row)) for name, row in zip(CORRUPTIONS, rates, strict=True)}

    def metrics(self) -> dict[str, float]:
        """Return every metric on all images."""
        return {s.metric: s.whole() for s in self.statistics()}

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays, eight answers to a byte."""
        return {
            "images": np.array(self.images, np.str_),
            "right": np.packbits(self.right, axis=1),
            "clean_right": self.clean_right,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> CorruptionErrors:
        """Return what `arrays` described."""
        images = tuple(map(str, arrays["images"]))
        right = np.unpackbits(arrays["right"], axis=1, count=len(images)).astype(bool)
        return cls(images=images, right=right, clean_right=arrays["clean_right"].astype(bool))

    def statistics(self) -> Sequence[Statistic]:
        """Return mCE, mean top-1 over corruptions, top-1 on clean images, and the drop."""
        mean = self.right.mean(axis=0)
        clean = self.clean_right.astype(np.float64)
        return [
            Statistic(metric="mce", images=self.images, value=self._mce, resamples=500),
            mean_share("top1", self.images, mean),
            mean_share("top1_clean", self.images, clean),
            mean_share("drop", self.images, clean - mean),
        ]

    def _mce(self, weights: np.ndarray) -> np.ndarray:
        wrong = (~self.right).astype(np.float32)
        rates = (weights.astype(np.float32) @ wrong.T) / weights.sum(axis=1, keepdims=True)
        summed = rates.reshape(len(weights), len(CORRUPTIONS), len(SEVERITIES)).sum(axis=2)
        reference = np.array([sum(alexnet_errors()[name]) for name in CORRUPTIONS])
        return 100 * (summed / reference).mean(axis=1)
