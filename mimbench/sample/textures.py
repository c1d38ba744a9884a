"""Three textures (brick, grass, gravel): scikit-image's photographs, or drawn ones without it.

The photographs are read as files from the installed package. `skimage.data.brick()` is never
called, because it may go to the network when a file is missing.
"""

import logging
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

logger = logging.getLogger(__name__)

NAMES = ("brick", "grass", "gravel")
PHOTOGRAPHS, DRAWN = "scikit-image photographs", "drawn"
SIDE = 512
TRAIN_COLUMNS = 320
"""Columns before this one are for training, the others for validation."""

_ZOOM = (0.7, 1.4)
_TINT = (0.25, 0.75)
_CONTRAST = (0.05, 0.1)


@dataclass(frozen=True, kw_only=True)
class TextureBank:
    """The textures as standardised grey images, and where they came from."""

    source: str
    images: tuple[NDArray[np.float64], ...]

    def patch(self, rng: Generator, kind: int, split: str, size: int) -> NDArray[np.float64]:
        """Cut a `size` x `size` RGB patch in [0, 1] of texture `kind`, tinted at random.

        Tint and contrast are independent of the kind: colour never tells the class.
        """
        image = self.images[kind]
        left, right = (0, TRAIN_COLUMNS) if split == "train" else (TRAIN_COLUMNS, SIDE)
        side = min(size * rng.uniform(*_ZOOM), right - left - 1)
        row = rng.uniform(0, SIDE - 1 - side)
        column = rng.uniform(left, right - 1 - side)
        steps = np.linspace(0, side, size)
        grey = _bilinear(image, row + steps, column + steps)
        if rng.random() < 0.5:
            grey = grey[:, ::-1]
        grey = (grey - grey.mean()) / (grey.std() + 1e-6)
        colour = rng.uniform(*_TINT, 3)
        return np.clip(colour + grey[..., None] * rng.uniform(*_CONTRAST), 0, 1)


def _bilinear(
    image: NDArray[np.float64], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sample `image` at the grid `rows` x `columns` (bilinear)."""
    top, left = rows.astype(int), columns.astype(int)
    bottom, right = np.minimum(top + 1, SIDE - 1), np.minimum(left + 1, SIDE - 1)
    down, across = (rows - top)[:, None], (columns - left)[None, :]
    upper = image[np.ix_(top, left)] * (1 - across) + image[np.ix_(top, right)] * across
    lower = image[np.ix_(bottom, left)] * (1 - across) + image[np.ix_(bottom, right)] * across
    return upper * (1 - down) + lower * down


@cache
def texture_bank() -> TextureBank:
    """Return the photographs where scikit-image ships them, else drawn textures."""
    files = _photograph_files()
    if files is None:
        logger.info("scikit-image's texture files are not installed: textures are drawn instead")
        return drawn_bank()
    images = []
    for file in files:
        with Image.open(file) as picture:
            images.append(_standardised(np.asarray(picture.convert("L"), dtype=np.float64)))
    return TextureBank(source=PHOTOGRAPHS, images=tuple(images))


def _photograph_files() -> list[Path] | None:
    """Return the three files inside the installed scikit-image, or None if any is missing."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return None
    files = [Path(spec.origin).parent / "data" / f"{name}.png" for name in NAMES]
    return files if all(file.is_file() for file in files) else None


@cache
def drawn_bank() -> TextureBank:
    """Return textures drawn by formula: brick courses, blades of grass, blobs of gravel."""
    rng = np.random.default_rng(512)
    images = (_draw_brick(rng), _draw_grass(rng), _draw_gravel(rng))
    return TextureBank(source=DRAWN, images=tuple(_standardised(image) for image in images))


def _standardised(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return (image - image.mean()) / image.std()


def _draw_brick(rng: Generator) -> NDArray[np.float64]:
    """Courses of bricks, each brick with its own brightness, between dark joints."""
    height, width, joint = 26, 64, 4
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    course = y // height
    shifted = x + (course % 2) * (width // 2)
    tone = rng.uniform(0.5, 1.0, (SIDE // height + 1, SIDE // width + 2))
    wall = tone[course, shifted // width]
    wall[(y % height < joint) | (shifted % width < joint)] = 0.1
    rough = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.0)
    return ndimage.gaussian_filter(wall, 0.8) + 0.15 * rough


def _draw_grass(rng: Generator) -> NDArray[np.float64]:
    """Long thin blades: noise smeared along three steep directions, the brightest on top."""
    layers = []
    for angle in (-18, 4, 22):
        smear = ndimage.gaussian_filter(rng.normal(size=(2 * SIDE, 2 * SIDE)), (12, 0.9))
        turned = ndimage.rotate(smear, angle, reshape=False, order=1)
        middle = turned[SIDE // 2 : SIDE // 2 + SIDE, SIDE // 2 : SIDE // 2 + SIDE]
        layers.append(_standardised(middle))
    return np.max(layers, axis=0)


def _draw_gravel(rng: Generator) -> NDArray[np.float64]:
    """Pebbles: cells around random points, bright in the middle and dark at the edges."""
    points = rng.integers(0, SIDE, (1600, 2))
    seeds = np.ones((SIDE, SIDE), dtype=bool)
    seeds[points[:, 0], points[:, 1]] = False
    distance, nearest = ndimage.distance_transform_edt(seeds, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    tone = rng.uniform(0.5, 1.0, (SIDE, SIDE))[nearest[0], nearest[1]]
    return tone * np.exp(-((distance / 8.0) ** 2))
