"""How sure a number or a difference is: resampling over test images, and spread over seeds, apart."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEVEL = 0.95
RESAMPLES = 2000
CHUNK = 64


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the width."""
        return (self.high - self.low) / 2

    def covers(self, value: float) -> bool:
        """Return whether the value lies inside."""
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference a minus b of one metric, in points."""

    metric: str
    difference: float
    sampling: Interval
    """Over test images, seeds held fixed (averaged)."""
    mcnemar: float | None = None
    """Two-sided exact p-value; hits and misses with one seed each only."""
    seeds: Interval | None = None
    """Over training seeds (Welch); None unless both have two or more."""
    seed_sd: tuple[float | None, float | None] = (None, None)

    @property
    def winner(self) -> Literal["a", "b", ""]:
        """Return which is better, if the evidence at hand shows it; with seeds both must agree."""
        found = [self.sampling, *([self.seeds] if self.seeds else [])]
        if all(i.low > 0 for i in found):
            return "a"
        return "b" if all(i.high < 0 for i in found) else ""


def percentile_interval(draws: np.ndarray) -> Interval:
    """Return the central 95 % of bootstrap draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


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


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Return the exact two-sided p-value that hits a and b differ by chance only."""
    only_a, only_b = int(np.sum((a > 0) & (b == 0))), int(np.sum((a == 0) & (b > 0)))
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    if discordant == 0:
        return 1.0
    # both tails of a fair coin, in whole numbers: exact, and without scipy's second of import time
    ways = tail = 1
    for i in range(fewer):
        ways = ways * (discordant - i) // (i + 1)
        tail += ways
    return min(1.0, tail / 2 ** (discordant - 1))


def welch(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the difference of means over seeds; None below two seeds each."""
    if min(len(a), len(b)) < 2:
        return None
    # only a comparison over seeds waits for scipy
    from scipy.special import stdtrit  # noqa: PLC0415

    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    middle = float(np.mean(a) - np.mean(b))
    if va + vb == 0:
        return Interval(middle, middle)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * math.sqrt(va + vb))
    return Interval(middle - half, middle + half)


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare_shares(
    metric: str, a: Sequence[np.ndarray], b: Sequence[np.ndarray], rng: np.random.Generator
) -> Comparison:
    """Compare a metric that is 100 times the mean of the images' own shares (hits); one array a seed."""
    mean_a, mean_b = np.mean(a, axis=0), np.mean(b, axis=0)
    draws = 100 * bootstrap_mean(mean_a - mean_b, rng)
    tops = [[100 * float(np.mean(hits)) for hits in side] for side in (a, b)]
    # means over draws of the training images are neither right nor wrong
    single = len(a) == len(b) == 1 and all(np.isin(x[0], (0, 1)).all() for x in (a, b))
    return Comparison(
        metric=metric,
        difference=100 * float(np.mean(mean_a - mean_b)),
        sampling=percentile_interval(draws),
        mcnemar=mcnemar(a[0], b[0]) if single else None,
        seeds=welch(*tops),
        seed_sd=(spread(tops[0]), spread(tops[1])),
    )


def compare_functions(
    metric: str,
    a: Sequence[Callable[[np.ndarray], np.ndarray]],
    b: Sequence[Callable[[np.ndarray], np.ndarray]],
    images: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare a metric that is a function of image weights (AP, mIoU); one function for each seed."""
    whole = np.ones((1, images))
    values = [[float(f(whole)[0]) for f in side] for side in (a, b)]
    draws = bootstrap([*a, *b], images, rng, resamples)
    difference = draws[: len(a)].mean(axis=0) - draws[len(a) :].mean(axis=0)
    return Comparison(
        metric=metric,
        difference=float(np.mean(values[0]) - np.mean(values[1])),
        sampling=percentile_interval(difference),
        seeds=welch(*values),
        seed_sd=(spread(values[0]), spread(values[1])),
    )


def verdict(name_a: str, name_b: str, found: Comparison) -> str:
    """Return one line that a person can quote."""
    text = f"{found.difference:+.2f} {found.metric}, 95 % interval {found.sampling.low:+.2f} to {found.sampling.high:+.2f} over test images"
    if found.mcnemar is not None:
        text += f", McNemar p = {found.mcnemar:.2g}"
    if found.seeds:
        text += f"; over seeds {found.seeds.low:+.2f} to {found.seeds.high:+.2f}"
    else:
        text += "; spread over seeds not measured"
    if not found.winner:
        return f"no difference shown between {name_a} and {name_b} ({text})"
    better, worse = (name_a, name_b) if found.winner == "a" else (name_b, name_a)
    return f"{better} is better than {worse} ({text})"
