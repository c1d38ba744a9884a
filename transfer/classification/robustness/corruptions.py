"""The fifteen corruptions of ImageNet-C at five severities, made on the fly (Hendrycks & Dietterich 2019).

Strengths are the published ones, and lengths in pixels are for pictures of 224, scaled with the side.
What is drawn depends on the image's name, the corruption and the severity alone. The published files
were made by other libraries and saved as JPEG: numbers on these pictures are of a protocol of their own.
Two differences in kind: motion blur is a line of Gaussian weights instead of ImageMagick's, and frost is
drawn crystals instead of six photographs.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mimbench.system.seeds import sequence_generator
from transfer.classification.robustness.fractals import clouds, crystals

Pixels = NDArray[np.floating]
"""(h, w, 3) in [0, 1]."""
Corruption = Callable[[Pixels, int, Generator], Pixels]
SIDE = 224
QUALITY = 85
"""Of the JPEG that the published files were saved as."""
SEVERITIES = (1, 2, 3, 4, 5)


def gaussian_noise(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add normal noise."""
    return x + rng.normal(0, (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1], x.shape)


def shot_noise(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Count few photons."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Set values to black or white."""
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    struck = rng.random(x.shape) < amount
    return np.where(struck, (rng.random(x.shape) < 0.5).astype(np.float32), x)


def defocus_blur(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur by a disk, its edge softened."""
    del rng
    radius, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _filter(x, _disk(radius * _scale(x), soft * _scale(x)))


def glass_blur(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur, swap neighbouring pixels, blur."""
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        severity - 1
    ]
    sigma, reach = sigma * _scale(x), max(1, round(reach * _scale(x)))
    out = _gaussian(x, sigma)
    height, width = out.shape[:2]
    for _ in range(times):
        moves = rng.integers(-reach, reach, size=(height, width, 2))
        # in the order of the published loop, from the lower right: a pixel may travel on
        for row in range(height - reach - 1, reach, -1):
            for column in range(width - reach - 1, reach, -1):
                dx, dy = moves[row, column]
                here, there = (row, column), (row + dy, column + dx)
                out[here], out[there] = out[there].copy(), out[here].copy()
    return _gaussian(out, sigma)


def motion_blur(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Blur along a line."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return _filter(x, _line(radius * _scale(x), sigma * _scale(x), rng.uniform(-45, 45)))


def zoom_blur(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Average the picture with enlarged ones."""
    del rng
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[
        severity - 1
    ]
    factors = np.arange(1, last, step)
    zoomed = np.sum([_zoomed(x, f) for f in factors], axis=0)
    return (x + zoomed) / (len(factors) + 1)


def snow(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Whiten, and let flakes fall."""
    mean, sd, zoom, least, radius, sigma, kept = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    layer = _zoomed(rng.normal(mean, sd, x.shape[:2])[..., None], zoom)[..., 0]
    layer = np.clip(np.where(layer < least, 0, layer), 0, 1)
    kernel = _line(radius * _scale(x), sigma * _scale(x), rng.uniform(-135, -45))
    flakes = ndimage.convolve(layer, kernel, mode="nearest")[..., None]
    grey = (x @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    white = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return white + flakes + np.rot90(flakes, k=2)


def frost(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Lay crystals over the picture."""
    kept, over = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    return kept * x + over * crystals(x.shape[0], rng)


def fog(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Add clouds, and keep the lightest value where it was."""
    thick, decay = ((1.5, 2.0), (2, 2.0), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[severity - 1]
    most = float(x.max())
    return (x + thick * clouds(x.shape[0], decay, rng)[..., None]) * most / (most + thick)


def brightness(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Raise the value of hue, saturation, value: all channels by one factor."""
    del rng
    value = x.max(axis=2, keepdims=True)
    lifted = np.minimum(value + 0.1 * severity, 1)
    # black has no hue: it turns grey
    return np.where(value > 0, x * lifted / np.maximum(value, 1e-8), lifted)


def contrast(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Draw values towards the channel's mean."""
    del rng
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def elastic_transform(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Warp: an affine map of three points, then smooth shifts."""
    # 244 for 224 is a slip of the published script; the files were made with it
    shift, sigma, corner = (
        244 * _scale(x) * np.array(c)
        for c in zip(
            (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02),
            strict=True,
        )
    )  # fmt: skip
    shift, sigma, corner = shift[severity - 1], sigma[severity - 1], corner[severity - 1]
    side = x.shape[0]
    middle, square = side // 2, side // 3
    points = np.array(
        [
            [middle + square, middle + square],
            [middle + square, middle - square],
            [middle - square, middle - square],
        ]
    )
    moved = points + rng.uniform(-corner, corner, size=points.shape)
    # from the moved points back to the old ones: where each new pixel comes from
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points).T
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).astype(np.float64)
    source = grid @ back[:, :2].T + back[:, 2]
    for axis in range(2):
        draw = rng.uniform(-1, 1, size=(side, side))
        source[..., axis] += (
            ndimage.gaussian_filter(draw, sigma, mode="reflect", truncate=3) * shift
        )
    return np.stack(
        [
            ndimage.map_coordinates(
                x[..., c], [source[..., 1], source[..., 0]], order=1, mode="mirror"
            )
            for c in range(3)
        ],
        axis=-1,
    )


def pixelate(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Shrink and enlarge by boxes."""
    del rng
    side = x.shape[0]
    small = max(1, int(side * (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]))
    image = _image(x).resize((small, small), Image.Resampling.BOX)
    return _array(image.resize((side, side), Image.Resampling.BOX))


def jpeg_compression(x: Pixels, severity: int, rng: Generator) -> Pixels:
    """Compress."""
    del rng
    return _array(_jpeg(_image(x), (25, 18, 15, 10, 7)[severity - 1]))


CORRUPTIONS: dict[str, Corruption] = {
    f.__name__: f
    for f in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow,
        frost, fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression,
    )
}  # fmt: skip
"""In the order of the published table: noise, blur, weather, digital."""


def corrupt(image: Image.Image, corruption: str, severity: int, name: str) -> Image.Image:
    """Return a square picture corrupted, as the JPEG that a file would hold.

    Args:
        image: Cropped to the size that a network sees.
        corruption: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        name: Of the image: with corruption and severity it decides all that is drawn.
    """
    place = list(CORRUPTIONS).index(corruption)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    out = CORRUPTIONS[corruption](_array(image), severity, sequence_generator(key, place, severity))
    return _jpeg(_image(np.clip(out, 0, 1)), QUALITY)


def _array(image: Image.Image) -> Pixels:
    return np.asarray(image, dtype=np.float32) / 255


def _image(x: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray((255 * x).astype(np.uint8))


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _scale(x: Pixels) -> float:
    return x.shape[0] / SIDE


def _gaussian(x: Pixels, sigma: float) -> Pixels:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def _filter(x: Pixels, kernel: Pixels) -> Pixels:
    return np.stack([ndimage.convolve(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)


def _disk(radius: float, soft: float) -> Pixels:
    reach = int(np.ceil(radius)) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    # the share of a pixel inside, so that a radius below a pixel blurs a little
    inside = np.clip(radius + 0.5 - np.hypot(rows, columns), 0, 1)
    softened = ndimage.gaussian_filter(inside, soft)
    return (softened / softened.sum()).astype(np.float32)


def _line(radius: float, sigma: float, angle: float) -> Pixels:
    reach = max(1, int(np.ceil(radius)))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    for step in np.linspace(0, radius, 4 * reach + 1):
        weight = np.exp(-0.5 * (step / max(sigma, 1e-6)) ** 2)
        row, column = -np.sin(np.deg2rad(angle)) * step, np.cos(np.deg2rad(angle)) * step
        kernel[round(reach + row), round(reach + column)] += weight
    return kernel / kernel.sum()


def _zoomed(x: Pixels, factor: float) -> Pixels:
    side = x.shape[0]
    # the middle part, as large as is needed to fill the picture
    part = int(np.ceil(side / factor))
    top = (side - part) // 2
    middle = x[top : top + part, top : top + part]
    out: Pixels = np.asarray(ndimage.zoom(middle, (factor, factor, 1), order=1))
    trim = (out.shape[0] - side) // 2
    return out[trim : trim + side, trim : trim + side]
