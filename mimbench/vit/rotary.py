"""Positions that rotate queries and keys, for images of any size.

`centred` (DINOv3): patch centres in [-1, 1], periods up to base 100, pairs half a head apart.
`stretched` (EVA-02): patch corners on the grid of training, frequencies of base 10000, pairs of
neighbouring channels. Both turn by rows first, then by columns. `stepped` (PE): places 1, 2, 3 ...
whatever the picture's size, columns first, else as `stretched`. Prefix tokens are not turned.

`bordered` (CAPI): patches from 0 to 1, both ends included; registers lie along the picture's border and
are turned too. Of two paired channels one turns by its row, the other by its column: not a rotation, so
that in a window the place itself counts, not the step alone.
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
CAPI_FASTEST, CAPI_SLOWEST = 7.0, 7e-4
"""Turns across the picture, of `bordered` rotation."""


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
    """Return (b, heads, n, d) with the last tokens rotated in pairs of channels.

    Args:
        x: Queries or keys.
        angles: Of the tokens that turn: (n, d / 2), for `bordered` (n, d); leading dimensions are
            those of x.
        rotation: The family.
    """
    prefix = x.shape[2] - angles.shape[-2]
    head, body = x[:, :, :prefix], x[:, :, prefix:]
    cos, sin = angles.cos(), angles.sin()
    if rotation == "bordered":
        first, second = body.float().chunk(2, dim=-1)
        turned = body.float() * cos + torch.cat([-second, first], dim=-1) * sin
    elif rotation == "centred":
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
    registers: int = 0,
) -> Tensor:
    """Return the angles (h * w, width / 2) of every patch, one axis after the other.

    For `bordered` (registers + h * w, width), one angle for each channel.

    Args:
        grid: Patches (rows, columns).
        width: Of a head.
        rotation: The family.
        trained: Side of the grid that `stretched` was trained at.
        shown: Only so many first rows and columns, for a window of the grid; it may reach beyond.
        registers: Before the patches, where they have places too (`bordered`).
    """
    if rotation == "bordered":
        return _bordered(grid, registers) @ capi_frequencies(width)
    counts = [torch.arange(n, dtype=torch.float32) for n in shown or grid]
    if rotation == "centred":
        centres = [(i + 0.5) / n * 2 - 1 for i, n in zip(counts, grid, strict=True)]
        return (2 * math.pi * _places(centres) / rotation_periods(width)).flatten(1)
    exponents = torch.arange(width // 4, dtype=torch.float32) / (width // 4)
    if rotation == "stepped":
        return (_places([i + 1 for i in counts]).flip(1) * FREQUENCY_BASE**-exponents).flatten(1)
    corners = [i / n * trained for i, n in zip(counts, grid, strict=True)]
    return (_places(corners) * FREQUENCY_BASE**-exponents).flatten(1)


def _bordered(grid: tuple[int, int], registers: int) -> Tensor:
    """Return (row, column) of registers along the border, then of the patches, in [0, 1]."""
    rows, columns = (torch.linspace(0, 1, n) for n in grid)
    patches = torch.cartesian_prod(rows, columns)
    along = torch.arange(registers // 4) / max(1, registers // 4)
    zero, one = torch.zeros_like(along), torch.ones_like(along)
    # clockwise, in rows and columns: down the left side is first
    border = torch.stack(
        [torch.cat([along, one, 1 - along, zero]), torch.cat([zero, along, one, 1 - along])], dim=1
    )
    return torch.cat([border * patches[-1], patches])


def capi_frequencies(width: int) -> Tensor:
    """Return CAPI's frequencies (2, width) of a head: the first half of the channels turns by rows."""
    exponents = torch.linspace(0, -1, width // 4)
    each = (CAPI_FASTEST * (CAPI_FASTEST / CAPI_SLOWEST) ** exponents).repeat(2)
    none = torch.zeros(width // 2)
    return torch.stack([torch.cat([each, none]), torch.cat([none, each])]) * 2 * torch.pi


def _places(coordinates: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*coordinates, indexing="ij"), dim=-1).reshape(-1, 2, 1)
