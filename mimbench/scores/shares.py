"""Outcomes of any metric that is a mean over images: each image's own share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mimbench.scores.outcomes import Outcomes, Statistic


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares(Outcomes):
    """For each image a number from 0 to 1: right or wrong, a recall, a precision.

    Gives each metric as 100 times the mean. A metric that is no plain mean (a mean over classes, a
    ratio of sums) needs a kind of its own.
    """

    images: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    """Metric -> (images,) shares."""

    def __post_init__(self) -> None:
        """Refuse shares that do not belong to the images."""
        for metric, shares in self.values.items():
            if shares.shape != (len(self.images),):
                raise ValueError(
                    f"{metric} has shares of shape {shares.shape} for {len(self.images)} images"
                )

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        shares = {f"share_{metric}": values for metric, values in self.values.items()}
        return {"images": np.array(self.images, np.str_), **shares}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Shares:
        """Return what `arrays` described."""
        values = {
            name.removeprefix("share_"): shares
            for name, shares in arrays.items()
            if name.startswith("share_")
        }
        return cls(images=tuple(str(name) for name in arrays["images"]), values=values)

    def statistics(self) -> Sequence[Statistic]:
        """Return 100 times the mean of each metric's shares."""
        return [mean_share(metric, self.images, shares) for metric, shares in self.values.items()]


def mean_share(metric: str, images: tuple[str, ...], shares: np.ndarray) -> Statistic:
    """Return the metric that is 100 times the mean of the images' shares."""
    return Statistic(
        metric=metric,
        images=images,
        value=lambda weights: 100 * (weights @ shares) / weights.sum(axis=1),
        per_image=np.asarray(shares, dtype=np.float64),
    )
