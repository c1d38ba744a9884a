"""Targets computed from the image itself: gradient histograms (MaskFeat), low frequencies (PixMIM)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.system.errors import UserError

BINS, CELL, WINDOW = 9, 8, 16
"""Directions of a histogram, pixels along a cell's side and along the Gaussian window's."""
RADIUS = 40 / 224
"""Of the frequencies that stay, over the image's side."""


def histogram_width(patch: int) -> int:
    """Return how many numbers a patch's histograms have."""
    if patch % CELL:
        raise UserError(
            f"objective.target=hog counts gradients in cells of {CELL} pixels, into which patches of "
            f"{patch} do not divide; take encoder.patch=8 or 16, or another target"
        )
    return 3 * BINS * (patch // CELL) ** 2


def oriented_gradients(images: Tensor, patch: int, *, window: bool = True) -> Tensor:
    """Return each patch's histograms of oriented gradients (b, n, 3 * 9 * cells).

    Opposite directions share a bin; every cell's nine numbers have norm 1. Channels and bins come
    first, then the patch's cells row by row.

    Args:
        images: (b, 3, H, W), normalised.
        patch: Side of a patch, a multiple of 8 pixels.
        window: Weigh gradients by a Gaussian over tiles of 16 pixels, as published.
    """
    b, c, height, width = images.shape
    smooth = torch.tensor([1.0, 2.0, 1.0], device=images.device)
    slope = torch.tensor([1.0, 0.0, -1.0], device=images.device)
    kernel = smooth.view(-1, 1) * slope
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1)
    padded = F.pad(images.float(), (1, 1, 1, 1), mode="reflect").reshape(b * c, 1, height + 2, -1)
    gx, gy = F.conv2d(padded, kernels).unbind(1)
    size = torch.hypot(gx, gy)
    turn = torch.atan2(gx, gy) / (2 * math.pi) * 2 * BINS
    bins = turn.floor().long() % BINS
    if window:
        size = size * _tiled_window(height, width, images.device)
    votes = torch.zeros(b * c, BINS, height, width, device=images.device)
    votes.scatter_(1, bins.unsqueeze(1), size.unsqueeze(1))
    cells = votes.unflatten(2, (-1, CELL)).unflatten(4, (-1, CELL)).sum((3, 5))
    cells = F.normalize(cells, dim=1)
    side = patch // CELL
    x = cells.view(b, c * BINS, height // patch, side, width // patch, side)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (height // patch) * (width // patch), -1)


def _tiled_window(height: int, width: int, device: torch.device) -> Tensor:
    places = torch.arange(WINDOW, device=device) - (WINDOW - 1) / 2
    line = (-0.5 * (places / (WINDOW / 2)).square()).exp()
    tile = line.view(-1, 1) * line
    tile = tile / tile.sum()
    return tile.repeat(-(-height // WINDOW), -(-width // WINDOW))[:height, :width]


def low_frequencies(images: Tensor, radius: float | None = None) -> Tensor:
    """Return images (b, 3, H, W) with only their low frequencies: an ideal circular filter.

    Args:
        images: In [0, 1] and not normalised: the absolute value of the inverse transform is taken.
        radius: Frequencies that stay; by default 40 at 224 pixels, in proportion at other sizes.
    """
    height, width = images.shape[-2:]
    kept = low_pass((height, width), RADIUS * height if radius is None else radius)
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float()), dim=(-2, -1))
    spectrum = torch.fft.ifftshift(spectrum * kept.to(images.device), dim=(-2, -1))
    return torch.fft.ifft2(spectrum).abs()


def low_pass(size: tuple[int, int], radius: float) -> Tensor:
    """Return which places of a centred spectrum stay."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in size)
    return rows.view(-1, 1).square() + columns.square() < radius**2
