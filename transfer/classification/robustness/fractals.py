"""Weather drawn from random numbers: clouds by midpoint displacement, crystals along random lines."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Map = NDArray[np.float64]


def clouds(side: int, decay: float, rng: Generator) -> Map:
    """Return (side, side) in [0, 1]: a plasma, each octave `decay` times weaker than the one before."""
    size = 1 << int(np.ceil(np.log2(side)))
    field = np.zeros((size, size))
    strength, step = 100.0, size
    while step >= 2:
        _midpoints(field, step, strength, rng)
        step, strength = step // 2, strength / decay
    field -= field.min()
    return (field / max(float(field.max()), 1e-12))[:side, :side]


def _midpoints(field: Map, step: int, strength: float, rng: Generator) -> None:
    """Fill the middles of squares, then of diamonds; edges wrap around."""

    def displaced(total: Map) -> Map:
        return total / 4 + strength * rng.uniform(-strength, strength, total.shape)

    half = step // 2
    corners = field[::step, ::step]
    across = corners + np.roll(corners, -1, axis=0)
    field[half::step, half::step] = displaced(across + np.roll(across, -1, axis=1))
    middles = field[half::step, half::step]
    beside = corners + np.roll(corners, -1, axis=1)
    field[::step, half::step] = displaced(middles + np.roll(middles, 1, axis=0) + beside)
    above = corners + np.roll(corners, -1, axis=0)
    field[half::step, ::step] = displaced(middles + np.roll(middles, 1, axis=1) + above)


def crystals(side: int, rng: Generator) -> Map:
    """Return (side, side, 3) in [0, 1]: bluish white needles, denser towards one corner."""
    haze = clouds(side, 1.8, rng)
    rows, columns = np.mgrid[:side, :side] / side
    needles = np.zeros((side, side))
    for _ in range(24):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.7, 1.4)
        distance = rows * np.cos(angle) + columns * np.sin(angle) - offset
        needles = np.maximum(needles, np.exp(-((distance * 60) ** 2)))
    corner = rng.integers(0, 2, 2)
    toward = 1 - np.hypot(rows - corner[0], columns - corner[1]) / np.sqrt(2)
    ice = np.clip(0.25 + 0.6 * haze * needles + 0.35 * toward, 0, 1)
    return ice[..., None] * np.array([0.92, 0.97, 1.0])
