"""Outcomes: what a run keeps for each image, so that its metrics can be recomputed and resampled.

A kind of outcome is a frozen dataclass that derives from `Outcomes`. `Hits`, `Confusion` and
`Detections` beside this file serve most tasks; a task may define its own and return it: a reader
finds the class as an attribute of the task's module, by the name that the result has recorded.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from mimbench.scores.confidence import (
    Interval,
    bootstrap,
    bootstrap_mean,
    percentile_interval,
    wilson,
)
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
        """Return the 95 % sampling interval: Wilson's for a share of right answers, else resampled."""
        rng = np.random.default_rng(seed)
        if self.per_image is not None and np.isin(self.per_image, (0, 1)).all():
            return wilson(float(self.per_image.sum()), len(self.per_image))
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

    def taken_for(self) -> Mapping[str, Mapping[str, float]]:
        """Return class -> predicted class -> share of it in percent, if the outcomes tell; {} if not."""
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
        _check_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not readable: {error}; run the cell again (--fresh)") from error


ARRAYS, ARRAY_BYTES = 64, 1 << 30


def _check_arrays(path: Path) -> None:
    """Refuse arrays that promise more than they hold, before anything is made of them."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > ARRAYS or sum(entry.file_size for entry in entries) > ARRAY_BYTES:
            raise ValueError("more arrays, or larger ones, than any run keeps")
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"an array of format {version}")
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                held = entry.file_size - file.tell()
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != held:
                raise ValueError(f"{entry.filename} holds {held:,} bytes for shape {shape}")


def read_outcomes(path: Path, kind: type[K]) -> K:
    """Read what `write_outcomes` wrote."""
    arrays = read_arrays(path)
    try:
        if "images" in arrays and arrays["images"].ndim != 1:
            raise ValueError(f"images of shape {arrays['images'].shape}, expected one name each")
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
