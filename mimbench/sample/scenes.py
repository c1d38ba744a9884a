"""Scenes: digits lying on two or three textures, with the true masks. COCO and ADE20K share them."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from mimbench.sample.digits import SPLITS, DigitBank, contrasting_ink, digit_bank
from mimbench.sample.textures import TextureBank, texture_bank
from mimbench.system.seeds import sequence_generator

SIDE = 96
SEED = 20_242
MIN_PIXELS = 12
"""An object of which less than this is to be seen is not labelled."""

_SIZES = (28, 37)
_CROWD_SIZES = (14, 19)
_CONTRAST = 0.3
_NOISE = 0.02
_MAX_HIDDEN = 0.25


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One labelled digit, or a crowd of equal digits: the pixels of it that can be seen."""

    digit: int
    mask: NDArray[np.bool_]
    crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture: RGB pixels, the texture under each pixel, and the things in painting order."""

    image: NDArray[np.uint8]
    textures: NDArray[np.uint8]
    things: tuple[Thing, ...]


def is_empty(index: int) -> bool:
    """Whether the scene at `index` holds no object at all, as some pictures of COCO do."""
    return index % 100 == 3


def has_bar(index: int) -> bool:
    """Whether a bar crosses the first digit of the scene, so that its mask falls in pieces."""
    return index % 40 == 1


def has_crowd(index: int) -> bool:
    """Whether the scene holds a crowd: about 1 % of all annotations."""
    return index % 40 == 2


def make_scene(split: str, index: int, textures: TextureBank | None = None) -> Scene:
    """Return scene `index` of `split`; it depends on nothing else but where textures come from."""
    rng = sequence_generator(SEED, SPLITS.index(split), index)
    textures = textures or texture_bank()
    canvas = _Canvas(rng, split, textures)
    if not is_empty(index):
        bank = digit_bank(split)
        if has_crowd(index):
            canvas.paint_crowd(rng, bank)
        for _ in range(rng.integers(1, 5)):
            canvas.paint_digit(rng, bank)
        if has_bar(index):
            canvas.paint_bar(rng)
    noisy = canvas.pixels + rng.normal(0, _NOISE, canvas.pixels.shape)
    image = np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
    things = tuple(thing for thing in canvas.things if thing.mask.sum() >= MIN_PIXELS)
    return Scene(image=image, textures=canvas.textures, things=things)


class _Canvas:
    """A scene being painted: what is painted later hides what was painted before."""

    def __init__(self, rng: Generator, split: str, textures: TextureBank):
        self.things: list[Thing] = []
        self.textures = _regions(rng)
        self.ground = np.empty((SIDE, SIDE, 3))
        for kind in np.unique(self.textures):
            region = self.textures == kind
            self.ground[region] = textures.patch(rng, int(kind), split, SIDE)[region]
        self.pixels = self.ground.copy()

    def paint_digit(self, rng: Generator, bank: DigitBank) -> None:
        """Paint one large digit where it hides little of the others; give up after 20 places."""
        digit, size = int(rng.integers(10)), int(rng.integers(*_SIZES))
        ink = bank.draw(rng, digit, size)
        for _ in range(20):
            row, column = rng.integers(0, SIDE - size + 1, 2)
            coverage = _placed(ink, row, column)
            if self._hides_little(coverage > 0.5):
                self._paint(rng, [coverage], digit, crowd=False)
                return

    def paint_crowd(self, rng: Generator, bank: DigitBank) -> None:
        """Paint five to eight small digits of one class close together: one crowd annotation."""
        digit = int(rng.integers(10))
        top, left = rng.integers(0, SIDE - 48, 2)
        cells = rng.permutation(9)[: rng.integers(5, 9)]
        layers = []
        for cell in cells:
            size = int(rng.integers(*_CROWD_SIZES))
            row, column = top + 15 * (cell // 3), left + 15 * (cell % 3)
            layers.append(_placed(bank.draw(rng, digit, size), row, column))
        self._paint(rng, layers, digit, crowd=True)

    def paint_bar(self, rng: Generator) -> None:
        """Lay a bar of bare ground over the middle of the first digit."""
        if not self.things:
            return
        rows = np.flatnonzero(self.things[0].mask.any(axis=1))
        middle = int(rows.mean()) + int(rng.integers(-3, 4))
        bar = np.zeros((SIDE, SIDE), dtype=bool)
        bar[middle - 2 : middle + 2] = True
        self.pixels[bar] = self.ground[bar]
        self._hide(bar)

    def _hides_little(self, mask: NDArray[np.bool_]) -> bool:
        return all(
            (thing.mask & mask).sum() <= _MAX_HIDDEN * thing.mask.sum() for thing in self.things
        )

    def _hide(self, mask: NDArray[np.bool_]) -> None:
        self.things = [
            Thing(digit=thing.digit, mask=thing.mask & ~mask, crowd=thing.crowd)
            for thing in self.things
        ]

    def _paint(
        self, rng: Generator, layers: list[NDArray[np.float64]], digit: int, *, crowd: bool
    ) -> None:
        coverage = np.max(layers, axis=0)
        mask = coverage > 0.5
        if not mask.any():
            return
        ink = contrasting_ink(rng, self.pixels[mask], _CONTRAST)
        self.pixels += coverage[..., None] * (ink - self.pixels)
        self._hide(mask)
        self.things.append(Thing(digit=digit, mask=mask, crowd=crowd))


def _regions(rng: Generator) -> NDArray[np.uint8]:
    """Cut the picture in two or three textures along wavy lines; return the texture's number."""
    kinds = rng.permutation(3)
    regions = np.full((SIDE, SIDE), kinds[0], dtype=np.uint8)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    for kind in kinds[1 : rng.integers(2, 4)]:
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        across = np.cos(angle) * x + np.sin(angle) * y
        along = np.cos(angle) * y - np.sin(angle) * x
        wave = rng.uniform(0.02, 0.08) * np.sin(rng.uniform(4, 12) * along + phase)
        regions[across > rng.uniform(-0.1, 0.25) + wave] = kind
    return regions


def _placed(ink: NDArray[np.float64], row: int, column: int) -> NDArray[np.float64]:
    """Return `ink` on an empty canvas with its corner at (row, column), cut at the border."""
    coverage = np.zeros((SIDE, SIDE))
    part = coverage[row : row + ink.shape[0], column : column + ink.shape[1]]
    part[:] = ink[: part.shape[0], : part.shape[1]]
    return coverage


def rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the one pixel wide rim around `mask`."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    grown = tall.copy()
    grown[:, 1:] |= tall[:, :-1]
    grown[:, :-1] |= tall[:, 1:]
    return grown & ~mask
