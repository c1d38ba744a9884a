"""Cards for classification: one large, light digit on a dark flat colour.

No texture here, on purpose: what cannot be foretold from the visible patches teaches a masked
autoencoder nothing in the minutes that the demo has, and then pretraining would not show.
"""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mimbench.sample.digits import SPLITS, digit_bank
from mimbench.system.seeds import sequence_generator

SIDE = 32
SEED = 20_241

_SIZES = (30, 33)
_GROUND = (0.05, 0.4)
_INK = (0.65, 1.0)
_TINT = 0.1
_NOISE = 0.02


def card_digit(index: int) -> int:
    """Return the class of card `index`: classes take turns, so any count is balanced."""
    return index % 10


def make_card(split: str, index: int) -> NDArray[np.uint8]:
    """Return card `index` of `split` as 32 x 32 RGB; it depends on nothing else."""
    rng = sequence_generator(SEED, SPLITS.index(split), index)
    size = int(rng.integers(*_SIZES))
    coverage = digit_bank(split).draw(rng, card_digit(index), size)
    row, column = rng.integers(0, SIDE - size + 1, 2)
    pixels = np.ones((SIDE, SIDE, 3)) * _colour(rng, _GROUND)
    ink = _colour(rng, _INK)
    part = pixels[row : row + size, column : column + size]
    part += coverage[..., None] * (ink - part)
    pixels += rng.normal(0, _NOISE, pixels.shape)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _colour(rng: Generator, brightness: tuple[float, float]) -> NDArray[np.float64]:
    """Draw a colour: a brightness within the limits, and a slight tint."""
    return np.clip(rng.uniform(*brightness) + rng.uniform(-_TINT, _TINT, 3), 0, 1)
