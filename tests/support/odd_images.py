"""A folder of photographs as the world has them: every mode, odd shapes, one pixel wide."""

from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = [(1, 1), (1, 37), (53, 1), (2, 3), (17, 240), (191, 33), (64, 64), (127, 89)]
MODES = {
    "L": "png",
    "LA": "png",
    "RGB": "jpg",
    "RGBA": "png",
    "P": "gif",
    "CMYK": "jpg",
    "1": "png",
    "I;16": "png",
    "YCbCr": "jpg",
    "F": "tiff",
}


def odd_images(root: Path, *, classes: int = 2) -> Path:
    """Write train and val folders that hold every mode at every shape, in turn of class."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, (mode, shape) in enumerate((m, s) for m in MODES for s in SHAPES):
            folder = root / split / f"class_{number % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
            image = Image.fromarray(pixels)
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            else:
                image = image.convert(mode)
            image.save(folder / f"{mode.replace(';', '')}_{shape[0]}x{shape[1]}.{MODES[mode]}")
    return root
