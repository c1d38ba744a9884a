"""Position tables: fixed sine-cosine, and resizing a learned or fixed table to another grid."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PositionRule = Literal["bicubic", "bicubic-antialias", "bicubic-offset", "bilinear"]
"""How a family resizes its table: MAE, detectron2, mmseg / timm, DINOv2-reg / DINO, DINOv2 / PE."""

Rotation = Literal["centred", "stretched", "stepped", "bordered"]
"""Families of rotary positions: DINOv3's, EVA-02's, PE's, CAPI's; they differ in places, periods and pairs."""

OFFSET = 0.1
"""DINO asks for a scale of (n + 0.1) / N, so that rounding never loses a row."""


def sincos_table(dim: int, grid: tuple[int, int], *, class_row: bool) -> Tensor:
    """Return MAE's fixed table (1, rows, dim): first half of the channels the column, then the row."""
    if dim % 4:
        raise ValueError(f"a sine-cosine table needs a width divisible by 4, got {dim}")
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    frequencies = 10000.0 ** -(np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    parts = []
    for coordinate in (columns, rows):
        angles = coordinate.reshape(-1, 1) * frequencies
        parts += [np.sin(angles), np.cos(angles)]
    table = np.concatenate(parts, axis=1)
    if class_row:
        table = np.concatenate([np.zeros((1, dim)), table])
    return torch.from_numpy(table).float().unsqueeze(0)


def resize_table(
    table: Tensor,
    *,
    grid: tuple[int, int],
    to: tuple[int, int],
    prefix: int,
    rule: PositionRule,
) -> Tensor:
    """Return the table (1, prefix + h * w, dim) resampled from `grid` to `to`; prefix rows are kept."""
    if table.shape[1] != prefix + grid[0] * grid[1]:
        raise ValueError(
            f"a table for {prefix} prefix rows and a {grid[0]}x{grid[1]} grid has "
            f"{prefix + grid[0] * grid[1]} rows, this one has {table.shape[1]}"
        )
    if grid == to:
        return table
    head, body = table[:, :prefix], table[:, prefix:]
    image = body.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    if rule == "bicubic-offset":
        scale = ((to[0] + OFFSET) / grid[0], (to[1] + OFFSET) / grid[1])
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        image = F.interpolate(
            image,
            size=to,
            mode="bilinear" if rule == "bilinear" else "bicubic",
            align_corners=False,
            antialias=rule == "bicubic-antialias",
        )
    if image.shape[-2:] != to:
        raise ValueError(f"resizing to {to} gave {tuple(image.shape[-2:])}")
    body = image.permute(0, 2, 3, 1).reshape(1, to[0] * to[1], -1).to(table.dtype)
    return torch.cat([head, body], dim=1)


ROTATION_BASE = 100.0
"""Longest period, in grid widths, of the rotation in every published DINOv3 model."""


def rotation_periods(width: int) -> Tensor:
    """Return the periods (width / 4) by which rotary positions turn a head of the given width."""
    exponents = 2.0 * torch.arange(width // 4, dtype=torch.float32) / (width // 2)
    return ROTATION_BASE**exponents
