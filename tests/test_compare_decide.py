"""The statistics of a comparison: exact by hand, equal to SciPy's, and right in a thousand simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pretrain.compare.decide import (
    blocks_needed,
    detectable,
    holm,
    non_inferiority,
    power,
    sign_flip,
    signs,
    t_interval,
)

BLOCKS = 8


def p_values(effect: float, experiments: int, seed: int) -> np.ndarray:
    """Return the p-values of many experiments whose differences have sd 1 and this mean."""
    dice = np.random.default_rng(seed)
    differences = dice.normal(effect, 1.0, (experiments, BLOCKS))
    return np.array([sign_flip(row) for row in differences])


def test_sign_flips_by_hand() -> None:
    assert sign_flip([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_flip([1.0, 2.0, 3.0], one_sided=True) == pytest.approx(1 / 8)
    assert sign_flip([-1.0, -2.0, -3.0], one_sided=True) == 1.0
    # +1 +2 -3 sums to 0, and no flip has a smaller sum than 0
    assert sign_flip([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip([0.1] * BLOCKS) == pytest.approx(2 / 2**BLOCKS)


def test_sign_flips_agree_with_scipys_permutation_test() -> None:
    values = np.random.default_rng(3).normal(0.4, 1, 7)
    # more resamples than there are flips: SciPy then counts all of them
    theirs = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=1000
    )
    assert sign_flip(values) == pytest.approx(theirs.pvalue)


def test_many_blocks_are_drawn_and_never_give_p_of_zero() -> None:
    assert len(signs(20)) < 2**20
    p = sign_flip([1.0] * 40)
    assert 0 < p < 1e-3


@pytest.mark.parametrize("level", [0.05, 0.0625, 0.25])
def test_the_level_holds_where_nothing_is_different(level: float) -> None:
    """An exact test rejects with the largest multiple of 2 / 2^8 below the level."""
    p = p_values(0.0, 2000, seed=1)
    exact = math.floor(level * 128 + 1e-9) / 128
    assert np.mean(p <= level) == pytest.approx(exact, abs=3 * math.sqrt(exact / 2000))
    # a test that looked at one side only would be off
    assert np.mean(p) == pytest.approx(0.5, abs=0.03)


def test_swapping_labels_within_blocks_gives_uniform_p() -> None:
    """Whatever the values are: only their signs are taken to be by chance."""
    values = 2.0 ** np.arange(BLOCKS)
    found = sorted(
        sign_flip(values * np.array(s)) for s in itertools.product((1, -1), repeat=BLOCKS)
    )
    pairs = np.array(found[::2])
    np.testing.assert_allclose(pairs, (np.arange(128) + 1) / 128)


@pytest.mark.parametrize("effect", [1.0, 2.0])
def test_the_power_is_what_the_plan_says(effect: float) -> None:
    """A planted effect of one and of two standard deviations, at Holm's first step of six arms."""
    level = 0.05 / 6
    found = np.mean(p_values(effect, 1000, seed=2) <= level)
    said = power(effect, 1.0, BLOCKS, level)
    # the plan is that of the t test; eight blocks can reach the level only with all signs alike
    assert abs(found - said) < 0.12
    assert (found > 0.8) == (effect == 2.0)


def test_power_against_simulated_t_tests() -> None:
    dice = np.random.default_rng(4)
    drawn = dice.normal(0.8, 1.0, (4000, 10))
    t = drawn.mean(1) / (drawn.std(1, ddof=1) / math.sqrt(10))
    found = np.mean(np.abs(t) > stats.t.ppf(0.975, 9))
    assert power(0.8, 1.0, 10, 0.05) == pytest.approx(found, abs=0.025)
    assert power(0.0, 1.0, 10, 0.05) == pytest.approx(0.05, abs=1e-6)
    assert power(50.0, 1.0, 10, 0.05) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sd", "effect", "level", "blocks"),
    [
        (7.4, 2, 0.05, 110),
        (2, 1, 0.05, 34),
        (2, 1, 0.01, 51),
        (1.4, 0.5, 0.05, 64),
        (1, 1, 0.01, 16),
    ],
)
def test_blocks_needed(sd: float, effect: float, level: float, blocks: int) -> None:
    """The numbers that the design was made with."""
    assert blocks_needed(effect, sd, level) == blocks


def test_what_is_needed_is_what_is_detectable() -> None:
    blocks = blocks_needed(1.5, 1.4, 0.01)
    assert blocks is not None
    assert detectable(1.4, blocks, 0.01) <= 1.5 < detectable(1.4, blocks - 1, 0.01)
    assert blocks_needed(0.001, 10, 0.05) is None
    # four blocks cannot reach a p-value of 0.05, whatever the effect
    assert detectable(1.0, 4, 0.05) == math.inf
    assert blocks_needed(100, 1.0, 0.05) == 6


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_keeps_the_level_of_six_arms_without_effect() -> None:
    dice = np.random.default_rng(5)
    wrong = 0
    for _ in range(400):
        arms = dice.normal(0, 1, (6, BLOCKS)) + dice.normal(0, 1, BLOCKS)
        wrong += min(holm({str(i): sign_flip(a) for i, a in enumerate(arms)}).values()) <= 0.05
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert wrong > 0


def test_intervals() -> None:
    values = np.random.default_rng(6).normal(1, 2, 9)
    interval = t_interval(values)
    theirs = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx(theirs)
    together = t_interval(values, comparisons=6)
    assert together is not None
    assert together.low < interval.low
    assert t_interval([1.0]) is None


def test_non_inferiority() -> None:
    close = non_inferiority([0.1, -0.2, 0.3, 0.0, -0.1, 0.2, -0.3, 0.1], margin=1.0)
    assert close.shown
    assert close.low > -0.5
    far = non_inferiority([-1.1, -0.9, -1.3, -0.8, -1.2, -1.0, -0.7, -1.0], margin=1.0)
    assert not far.shown
    # no difference shown is not the same as as good as: few and scattered blocks show nothing
    assert not non_inferiority([3.0, -3.0, 2.0], margin=1.0).shown
    assert not non_inferiority([0.0], margin=1.0).shown


def test_non_inferiority_is_wrong_at_the_margin_in_one_of_twenty() -> None:
    dice = np.random.default_rng(7)
    shown = [
        non_inferiority(row, margin=1.0).shown for row in dice.normal(-1.0, 0.5, (600, BLOCKS))
    ]
    assert 0.02 < np.mean(shown) < 0.08
