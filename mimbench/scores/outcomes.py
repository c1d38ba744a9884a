"""Outcomes: what a run keeps for each image, so that its metrics can be recomputed and resampled.

A kind of outcome is a frozen dataclass that derives from `Outcomes`. `Hits`, `Confusion` and
`Detections` beside this file serve most tasks; a task may define its own and return it: a reader
finds the class as an attribute of the task's module, by the name that the result has recorded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from mimbench.scores.confidence import Interval, bootstrap, bootstrap_mean, percentile_interval
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path

TOLERANCE = 0.005
"""Points by which outcomes may differ from the metric that the task returned."""
MEAN_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One metric over test images, computable on any resample of them."""

    metric: str
    images: tuple[str, ...]
    value: Callable[[np.ndarray], np.ndarray]
    """Image weights (b, images) in, metric (b,) out."""
    resamples: int = 1000
    per_image: np.ndarray | None = None
    """Each image's own share, where the metric is 100 times their mean: resampled at less cost."""

    def whole(self) -> float:
        """Return the metric on all images."""
        return float(self.value(np.ones((1, len(self.images))))[0])

    def interval(self, seed: int = 0) -> Interval:
        """Return the 95 % sampling interval."""
        rng = np.random.default_rng(seed)
        if self.per_image is not None:
            return percentile_interval(100 * bootstrap_mean(self.per_image, rng, MEAN_RESAMPLES))
        draws = bootstrap([self.value], len(self.images), rng, self.resamples)
        return percentile_interval(draws[0])

    def ordered(self, images: Sequence[str]) -> Statistic:
        """Return the same metric with its images in another order: loaders may order them differently."""
        if tuple(images) == self.images:
            return self
        place = {name: i for i, name in enumerate(images)}
        mine = np.array([place[name] for name in self.images])
        whose, value, shares = np.argsort(mine), self.value, self.per_image
        return Statistic(
            metric=self.metric,
            images=tuple(images),
            value=lambda weights: value(weights[:, mine]),
            resamples=self.resamples,
            per_image=None if shares is None else shares[whose],
        )


class Outcomes(ABC):
    """One kind of outcome: knows how to be kept, and which metrics it determines."""

    @abstractmethod
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays of numbers and text, for a file without pickles."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Outcomes:
        """Return what `arrays` described; a missing array is a KeyError, a wrong one a ValueError."""

    @abstractmethod
    def statistics(self) -> Sequence[Statistic]:
        """Return each metric that the outcomes determine, as a function of image weights."""

    def classes(self) -> Mapping[str, float]:
        """Return class -> score in percent for the report, if the outcomes tell; {} if not."""
        return {}


K = TypeVar("K", bound=Outcomes)


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Write outcomes as arrays without pickles, atomically."""
    arrays: dict[str, Any] = dict(outcomes.arrays())
    if bad := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        kind = type(outcomes).__name__
        raise UserError(
            f"{kind}.arrays() holds Python objects in {', '.join(bad)}; use numbers or text"
        )
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; pickles are refused."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}; run the cell again (--fresh)") from error


def read_outcomes(path: Path, kind: type[K]) -> K:
    """Read what `write_outcomes` wrote."""
    arrays = read_arrays(path)
    try:
        return cast(K, kind.from_arrays(arrays))
    except KeyError as error:
        raise UserError(f"{path} lacks {error.args[0]}; run the cell again (--fresh)") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; run the cell again (--fresh)") from error


def faithful(outcomes: Iterable[Outcomes], metrics: Mapping[str, float]) -> dict[str, Statistic]:
    """Return metric -> statistic for the metrics that the outcomes reproduce."""
    return {
        found.metric: found
        for kept in outcomes
        for found in kept.statistics()
        if found.metric in metrics and abs(found.whole() - metrics[found.metric]) <= TOLERANCE
    }
