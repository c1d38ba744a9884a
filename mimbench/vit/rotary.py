"""Positions that rotate queries and keys, for images of any size.

`centred` (DINOv3): patch centres in [-1, 1], periods up to base 100, pairs half a head apart.
`stretched` (EVA-02): patch corners on the grid of training, frequencies of base 10000, pairs of
neighbouring channels. Both turn by rows first, then by columns. `stepped` (PE): places 1, 2, 3 ...
whatever the picture's size, columns first, else as `stretched`. Prefix tokens are not turned.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor

from mimbench.vit.positions import Rotation, rotation_periods

FREQUENCY_BASE = 10_000.0
"""Of `stretched` and `stepped` rotation."""


def attend(attention: Attention, x: Tensor, angles: Tensor, rotation: Rotation) -> Tensor:
    """Return self-attention (b, n, d) with the last tokens' queries and keys rotated.

    Args:
        attention: timm's attention; its weights are used, not its forward.
        x: (b, n, d)
        angles: (patches, head width / 2)
        rotation: The family of the angles.
    """
    qkv = attention.qkv(x).unflatten(2, (3, attention.num_heads, attention.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    angles = angles.to(x.device)
    q, k = rotate(q, angles, rotation), rotate(k, angles, rotation)
    out = F.scaled_dot_product_attention(q, k, v)
    return attention.proj(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, angles: Tensor, rotation: Rotation = "centred") -> Tensor:
    """Return (b, heads, n, d) with the last tokens (the patches) rotated in pairs of channels."""
    prefix = x.shape[2] - len(angles)
    head, body = x[:, :, :prefix], x[:, :, prefix:]
    cos, sin = angles.cos(), angles.sin()
    if rotation == "centred":
        first, second = body.float().chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    else:
        first, second = body.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
        turned = turned.flatten(-2)
    return torch.cat([head, turned.to(x.dtype)], dim=2)


@lru_cache(maxsize=16)
def rotation_angles(
    grid: tuple[int, int],
    width: int,
    rotation: Rotation = "centred",
    trained: int = 0,
    shown: tuple[int, int] | None = None,
) -> Tensor:
    """Return the angles (h * w, width / 2) of every patch, one axis after the other.

    Args:
        grid: Patches (rows, columns).
        width: Of a head.
        rotation: The family.
        trained: Side of the grid that `stretched` was trained at.
        shown: Only so many first rows and columns, for a window of the grid; it may reach beyond.
    """
    counts = [torch.arange(n, dtype=torch.float32) for n in shown or grid]
    if rotation == "centred":
        centres = [(i + 0.5) / n * 2 - 1 for i, n in zip(counts, grid, strict=True)]
        return (2 * math.pi * _places(centres) / rotation_periods(width)).flatten(1)
    exponents = torch.arange(width // 4, dtype=torch.float32) / (width // 4)
    if rotation == "stepped":
        return (_places([i + 1 for i in counts]).flip(1) * FREQUENCY_BASE**-exponents).flatten(1)
    corners = [i / n * trained for i, n in zip(counts, grid, strict=True)]
    return (_places(corners) * FREQUENCY_BASE**-exponents).flatten(1)


def _places(coordinates: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*coordinates, indexing="ij"), dim=-1).reshape(-1, 2, 1)
