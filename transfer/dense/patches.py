"""Label maps seen patch by patch: the pixels of each patch, its class, its class frequencies, its rarity."""

import numpy as np
from numpy.typing import NDArray

from mimbench.system.errors import UserError

Labels = NDArray[np.uint8]
"""Classes from 0; `IGNORED` is not labelled."""
Floats = NDArray[np.float32]
IGNORED = 255


def patchify(labels: Labels, patch: int) -> Labels:
    """Return the pixels of each patch (..., rows x columns, patch x patch), in raster order.

    Args:
        labels: (..., H, W)
        patch: Side of a patch.
    """
    height, width = labels.shape[-2:]
    if height % patch or width % patch:
        raise UserError(f"labels of {height}x{width} do not divide into patches of {patch}")
    rows, columns = height // patch, width // patch
    cut = labels.reshape(*labels.shape[:-2], rows, patch, columns, patch).swapaxes(-3, -2)
    return cut.reshape(*labels.shape[:-2], rows * columns, patch * patch)


def unpatchify(pixels: Labels, grid: tuple[int, int]) -> Labels:
    """Return label maps (..., H, W) from the pixels of their patches (..., n, patch x patch)."""
    patch = round(pixels.shape[-1] ** 0.5)
    front = pixels.shape[:-2]
    cut = pixels.reshape(*front, *grid, patch, patch).swapaxes(-3, -2)
    return cut.reshape(*front, grid[0] * patch, grid[1] * patch)


def modal(pixels: Labels) -> Labels:
    """Return the most frequent label of each patch (n,) from its pixels (n, p), the smallest of equal ones."""
    ordered = np.sort(pixels, axis=1)
    n, p = ordered.shape
    starts = np.ones((n, p), dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # length of the run of equal labels that ends at each place: the first longest is the smallest label
    place = np.arange(p)
    begun = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    return ordered[np.arange(n), (place - begun).argmax(axis=1)]


def frequencies(pixels: Labels, classes: int) -> Floats:
    """Return the share of each class among a patch's pixels (n, classes); ignored pixels have none."""
    n, p = pixels.shape
    flat = np.arange(n)[:, None] * (classes + 1) + np.minimum(pixels, classes)
    counts = np.bincount(flat.ravel(), minlength=n * (classes + 1)).reshape(n, classes + 1)
    return (counts[:, :classes] / p).astype(np.float32)


def rarity(pixels: Labels, classes: int) -> Floats:
    """Return Hummingbird's score of each patch of one image (n,): large where its classes are common.

    The sum, over the classes that a patch holds, of the number of patches that hold the class.
    """
    held = frequencies(pixels, classes) > 0
    return (held * held.sum(axis=0)).sum(axis=1).astype(np.float32)


def rare_patches(scores: Floats, uniform: Floats, count: int) -> NDArray[np.int64]:
    """Return the `count` patches with the smallest score x uniform draw, smallest first."""
    if count > len(scores):
        raise UserError(
            f"{count} patches of each image were asked for, an image has {len(scores)}; "
            "choose a smaller memory, or null for every patch"
        )
    return np.argsort(scores * uniform, kind="stable")[:count]
