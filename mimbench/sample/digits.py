"""Handwritten digits (scikit-learn's 1,797 scans, 8 x 8), drawn at any size, angle and slant."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits

TRAIN_SCANS = 1260
"""Scans before this position are for training, the others for validation: the file is roughly in
order of writer, so validation holds hands that training has not seen."""
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "val")

_MAX_ANGLE = math.radians(15)
_MAX_SHEAR = 0.2
_PAPER, _SOFTNESS = 0.3, 0.25


@dataclass(frozen=True, kw_only=True)
class DigitBank:
    """The scans of one split: spline coefficients of the padded scans, by class."""

    scans: Mapping[int, NDArray[np.float64]]

    def draw(self, rng: Generator, digit: int, size: int) -> NDArray[np.float64]:
        """Draw one scan of `digit` as ink coverage in [0, 1], `size` x `size`, turned and slanted."""
        scan = self.scans[digit][rng.integers(len(self.scans[digit]))]
        angle = rng.uniform(-_MAX_ANGLE, _MAX_ANGLE)
        shear = rng.uniform(-_MAX_SHEAR, _MAX_SHEAR)
        return _render(scan, size, angle, shear)


@cache
def digit_bank(split: str) -> DigitBank:
    """Return the scans of `split` ("train" or "val")."""
    images, targets = load_digits(return_X_y=True)
    chosen = slice(None, TRAIN_SCANS) if split == "train" else slice(TRAIN_SCANS, None)
    scans = images.reshape(-1, 8, 8)[chosen] / 16
    splines = np.stack([ndimage.spline_filter(np.pad(scan, 1), order=3) for scan in scans])
    return DigitBank(scans={digit: splines[targets[chosen] == digit] for digit in range(10)})


def _render(
    spline: NDArray[np.float64], size: int, angle: float, shear: float
) -> NDArray[np.float64]:
    """Sample the spline on a turned and slanted `size` x `size` grid; return ink coverage."""
    span = spline.shape[0]
    axis = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    x = x + shear * y
    cos, sin = math.cos(angle), math.sin(angle)
    source = np.stack([sin * x + cos * y, cos * x - sin * y]) * span + (span - 1) / 2
    ink = ndimage.map_coordinates(spline, source, order=3, prefilter=False)
    return np.clip((ink - _PAPER) / _SOFTNESS, 0, 1)


def contrasting_ink(
    rng: Generator, background: NDArray[np.float64], contrast: float
) -> NDArray[np.float64]:
    """Draw an RGB ink whose brightness differs from `background`'s by at least `contrast`."""
    level = background.mean()
    darker, lighter = max(level - contrast, 0.0), max(1 - level - contrast, 0.0)
    place = rng.uniform(0, darker + lighter)
    target = place if place < darker else level + contrast + (place - darker)
    tint = rng.uniform(-0.15, 0.15, 3)
    return np.clip(target + tint - tint.mean(), 0, 1)
