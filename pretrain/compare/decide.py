"""From paired differences to a verdict: exact sign flips, Holm, intervals, non-inferiority, power.

A block is a seed: it fixes initial values, images, crops and random numbers for all arms, so a
difference within it is the strategy's. If two arms are alike, each difference is as likely to have
the other sign; that is all that the test assumes.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mimbench.scores.confidence import Interval

EXACT = 16
"""Blocks up to which all sign flips are counted; beyond, `DRAWS` of them are drawn."""
DRAWS = 65_536


def signs(blocks: int) -> np.ndarray:
    """Return all ways (ways, blocks) to flip the signs of so many differences, or many of them."""
    if blocks <= EXACT:
        return np.array(list(itertools.product((1.0, -1.0), repeat=blocks)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(DRAWS, blocks))
    # the observed signs are one of the ways: without them a p-value could be 0
    return np.concatenate([np.ones((1, blocks)), drawn])


def sign_flip(differences: Sequence[float] | np.ndarray, *, one_sided: bool = False) -> float:
    """Return the p-value that differences are around 0: share of sign flips with as large a mean.

    Args:
        differences: One for each block.
        one_sided: Only means above 0 count.
    """
    values = np.asarray(differences, dtype=np.float64)
    means = signs(len(values)) @ values
    found = values.sum()
    if not one_sided:
        means, found = np.abs(means), abs(found)
    # sums of the same numbers in another order differ by rounding
    return float(np.mean(means >= found - 1e-9 * (1 + abs(found))))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values that may be compared with the level however many there are (Holm 1979)."""
    out: dict[str, float] = {}
    largest = 0.0
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    for place, (name, p) in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p))
        out[name] = largest
    return {name: out[name] for name in p_values}


def t_interval(
    differences: Sequence[float] | np.ndarray, *, level: float = 0.95, comparisons: int = 1
) -> Interval | None:
    """Return the interval of the mean difference; None below two blocks.

    Args:
        differences: One for each block.
        level: Of the interval, or of all of them together.
        comparisons: How many intervals are to hold together (Bonferroni).
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    tail = (1 - level) / comparisons / 2
    half = stats.t.ppf(1 - tail, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean() - half), float(values.mean() + half))


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Whether one arm is at most a margin worse than another."""

    margin: float
    low: float
    """Lower end of the one-sided 95 % interval of the difference."""
    p: float
    """Of the difference lying at the margin or below: one-sided sign flips about the margin."""

    @property
    def shown(self) -> bool:
        """Tell whether both say so."""
        return self.low > -self.margin and self.p <= 0.05


def non_inferiority(differences: Sequence[float] | np.ndarray, margin: float) -> NonInferiority:
    """Test whether an arm less another, block by block, is above minus the margin."""
    values = np.asarray(differences, dtype=np.float64)
    interval = t_interval(values, level=0.90)
    return NonInferiority(
        margin=margin,
        low=-math.inf if interval is None else interval.low,
        p=sign_flip(values + margin, one_sided=True),
    )


def power(effect: float, sd: float, blocks: int, level: float) -> float:
    """Return the chance that a two-sided paired t test at this level finds a mean of `effect`."""
    if blocks < 2:
        return 0.0
    freedom, shift = blocks - 1, effect / sd * math.sqrt(blocks)
    limit = stats.t.ppf(1 - level / 2, freedom)
    upper = stats.nct.sf(limit, freedom, shift)
    lower = stats.nct.cdf(-limit, freedom, shift)
    # far tails of the noncentral t come out as NaN: they are nothing
    return float(np.nan_to_num(upper) + np.nan_to_num(lower))


def blocks_needed(effect: float, sd: float, level: float, *, wanted: float = 0.8) -> int | None:
    """Return how many blocks find an effect with the wanted power; None beyond 2,000."""
    low, high = 2, 2000
    if power(effect, sd, high, level) < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        if power(effect, sd, middle, level) >= wanted:
            high = middle
        else:
            low = middle + 1
    # with too few blocks no sign flip falls below the level, whatever the effect
    return max(low, math.ceil(math.log2(2 / level)))


def detectable(sd: float, blocks: int, level: float, *, wanted: float = 0.8) -> float:
    """Return the smallest effect that so many blocks find with the wanted power."""
    if blocks < 2 or 2.0 ** (1 - blocks) > level:
        return math.inf
    low, high = 0.0, 100 * sd
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, sd, blocks, level) >= wanted else (middle, high)
    return high
