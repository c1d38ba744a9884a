"""Which of two is better, and how far the evidence reaches: test images and training seeds apart.

Other test images would move a number, and another training seed would move it too. McNemar's test
and resampling see the first only: from one seed of a task that trains they say what is true on these
test images, and no more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mimbench.scores.confidence import (
    LEVEL,
    RESAMPLES,
    Interval,
    bootstrap,
    bootstrap_mean,
    bootstrap_p,
    percentile_interval,
)
from mimbench.scores.recipes import PairedGap


class Seeds(NamedTuple):
    """Welch's comparison of two means over training seeds."""

    interval: Interval
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference a - b of one metric, in points."""

    metric: str
    difference: float
    sampling: Interval
    """Over test images, seeds held fixed (averaged)."""
    sampling_p: float
    """McNemar's where both are one list of hits, else that of the resamples."""
    mcnemar: bool = False
    seeds: Seeds | None = None
    """Over training seeds; None unless both have two or more."""
    seed_sd: tuple[float | None, float | None] = (None, None)
    counts: tuple[int, int] = (1, 1)
    """Training seeds of a and b."""

    @property
    def p(self) -> float:
        """Return the p-value of all the evidence: images and, where measured, seeds must agree."""
        return max(self.sampling_p, self.seeds.p if self.seeds else 0.0)


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


def welch(a: Sequence[float], b: Sequence[float]) -> Seeds | None:
    """Return Welch's test of the difference of means over seeds; None below two seeds each."""
    if min(len(a), len(b)) < 2:
        return None
    # only a comparison over seeds waits for scipy
    from scipy.special import stdtr, stdtrit  # noqa: PLC0415

    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    middle = float(np.mean(a) - np.mean(b))
    if va + vb == 0:
        return Seeds(Interval(middle, middle), float(middle == 0))
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2) * math.sqrt(va + vb))
    p = 2 * float(stdtr(freedom, -abs(middle) / math.sqrt(va + vb)))
    return Seeds(Interval(middle - half, middle + half), p)


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, None for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for looking at all of them (Holm), in the order given."""
    order = np.argsort(values)
    out = [0.0] * len(values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        out[index] = largest
    return out


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
        sampling_p=mcnemar(a[0], b[0]) if single else bootstrap_p(draws),
        mcnemar=single,
        seeds=welch(*tops),
        seed_sd=(spread(tops[0]), spread(tops[1])),
        counts=(len(a), len(b)),
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
        sampling_p=bootstrap_p(difference),
        seeds=welch(*values),
        seed_sd=(spread(values[0]), spread(values[1])),
        counts=(len(a), len(b)),
    )


def verdict(
    name_a: str,
    name_b: str,
    found: Comparison,
    *,
    trains: bool = True,
    lower: bool = False,
    among: Sequence[float] = (),
    gap: PairedGap | None = None,
) -> str:
    """Return one line that a person can quote.

    Args:
        name_a: The first row.
        name_b: The second row.
        found: The comparison, a - b.
        trains: The task trains: another seed gives another number.
        lower: The smaller number is the better one.
        among: The p-values of all verdicts that are given at once, this one's included.
        gap: The difference under neighbouring settings of the recipe, where both were measured so.
    """
    p, text = found.p, evidence(name_a, name_b, found, trains=trains)
    if len(among) > 1:
        p = holm(among)[list(among).index(found.p)]
        text += f"; p = {p:.2g} by Holm over {len(among)} verdicts"
    if gap is not None:
        text += f"; {gap.words()}"
    if p >= 1 - LEVEL or found.difference == 0:
        return f"no difference shown between {name_a} and {name_b} ({text})"
    if gap is not None and not gap.decided:
        return f"cannot tell {name_a} from {name_b}: it depends on the recipe ({text})"
    better, worse = (name_a, name_b) if (found.difference > 0) != lower else (name_b, name_a)
    if trains and found.seeds is None:
        return (
            f"on these test images {better} does better than {worse}; one training seed says no more, "
            f"two or more of each (--seeds 2) would ({text})"
        )
    return f"{better} is better than {worse} ({text})"


def evidence(name_a: str, name_b: str, found: Comparison, *, trains: bool) -> str:
    """Return the numbers behind a verdict."""
    sampling = found.sampling
    ends = f", ends ±{sampling.error:.2f}" if sampling.error >= 0.005 else ""
    test = "McNemar p" if found.mcnemar else "p"
    text = (
        f"{name_a} - {name_b} = {found.difference:+.2f} {found.metric}, 95 % interval "
        f"{sampling.low:+.2f} to {sampling.high:+.2f} over test images{ends}, "
        f"{test} = {found.sampling_p:.2g}"
    )
    if found.seeds is None:
        return f"{text}; spread over seeds not measured" if trains else text
    sds = " and ".join(
        f"{sd or 0.0:.2f} (n={n})" for sd, n in zip(found.seed_sd, found.counts, strict=True)
    )
    return (
        f"{text}; over seeds {found.seeds.interval.low:+.2f} to {found.seeds.interval.high:+.2f}, "
        f"p = {found.seeds.p:.2g}, sd {sds}"
    )
