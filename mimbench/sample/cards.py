"""Cards for classification: one large digit on one flat colour, both colours drawn at random.

No texture here, on purpose: pixels that cannot be foretold teach a masked autoencoder nothing in
the minutes that the demo has, and then pretraining would not show.
"""

import numpy as np
from numpy.typing import NDArray

from mimbench.sample.digits import SPLITS, contrasting_ink, digit_bank

SIDE = 32
SEED = 20_241

_SIZES = (26, 33)
_GROUND = (0.2, 0.8)
_CONTRAST = 0.3
_NOISE = 0.02


def card_digit(index: int) -> int:
    """Return the class of card `index`: classes take turns, so any count is balanced."""
    return index % 10


def make_card(split: str, index: int) -> NDArray[np.uint8]:
    """Return card `index` of `split` as 32 x 32 RGB; it depends on nothing else."""
    rng = np.random.default_rng([SEED, SPLITS.index(split), index])
    size = int(rng.integers(*_SIZES))
    coverage = digit_bank(split).draw(rng, card_digit(index), size)
    row, column = rng.integers(0, SIDE - size + 1, 2)
    pixels = np.ones((SIDE, SIDE, 3)) * rng.uniform(*_GROUND, 3)
    ink = contrasting_ink(rng, pixels, _CONTRAST)
    part = pixels[row : row + size, column : column + size]
    part += coverage[..., None] * (ink - part)
    pixels += rng.normal(0, _NOISE, pixels.shape)
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
