"""How sure a number is: resampling over test images, and the interval of a proportion."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
CHUNK = 64


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float
    error: float = 0.0
    """Monte-Carlo standard error of the ends, where they come from resamples."""

    @property
    def half(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2

    def covers(self, value: float) -> bool:
        """Return whether the value lies inside."""
        return self.low <= value <= self.high


def percentile_interval(draws: np.ndarray) -> Interval:
    """Return the central 95 % of bootstrap draws, and how far other draws would move its ends.

    Draws without a value (a resample of a few images that holds no object) are left out.
    """
    draws = draws[~np.isnan(draws)]
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(draws, ends)
    errors = []
    for end in ends:
        # the share of draws below a quantile is binomial: one standard error up and down in rank
        step = math.sqrt(end * (1 - end) / len(draws))
        below, above = np.quantile(draws, [max(end - step, 0.0), min(end + step, 1.0)])
        errors.append(float(above - below) / 2)
    return Interval(float(low), float(high), max(errors))


def wilson(right: float, total: int) -> Interval:
    """Return the Wilson interval of a proportion, in percent: never empty, not even at 0 or all."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, scale = right / total, 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Interval(100 * max(middle - half, 0.0), 100 * min(middle + half, 1.0))


def bootstrap_p(draws: np.ndarray) -> float:
    """Return the two-sided p-value that a resampled difference is 0; at least 2 / (draws + 1)."""
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return min(1.0, 2 * (1 + tail) / (len(draws) + 1))


def bootstrap_mean(
    values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the means of resamples of the values.

    Few distinct values occur (hits and misses), so a resample is one multinomial draw of their
    counts: the same distribution as drawing every image, at a fraction of the cost.
    """
    distinct, counts = np.unique(values, return_counts=True)
    draws = rng.multinomial(len(values), counts / len(values), size=resamples)
    return draws @ distinct / len(values)


def image_weights(
    images: int, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Iterator[np.ndarray]:
    """Yield chunks (b, images) of how often each image occurs in each resample."""
    share = np.full(images, 1 / images)
    for first in range(0, resamples, CHUNK):
        yield rng.multinomial(images, share, size=min(CHUNK, resamples - first)).astype(np.float64)


def bootstrap(
    statistics: Sequence[Callable[[np.ndarray], np.ndarray]],
    images: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Return (statistics, resamples) values of functions of image weights, on the same resamples."""
    chunks = [[f(w) for f in statistics] for w in image_weights(images, rng, resamples)]
    return np.concatenate([np.stack(chunk) for chunk in chunks], axis=1)


def mean_iou(
    intersect: np.ndarray, union: np.ndarray, labelled: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return mIoU in percent as a function of image weights (b, images).

    Args:
        intersect: (images, classes) pixels that were predicted and labelled as the class.
        union: (images, classes) pixels that were either.
        labelled: (images, classes) pixels labelled as the class; classes never labelled in the
            whole set are left out, always the same ones whatever the resample.
    """
    present = labelled.sum(axis=0) > 0
    inter, either = intersect[:, present].astype(np.float64), union[:, present].astype(np.float64)

    def value(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = (weights @ inter) / (weights @ either)
        return 100 * np.nanmean(ratio, axis=1)

    return value
