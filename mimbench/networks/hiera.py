"""Hiera for images of any size whose sides are multiples of 32: timm builds it for one size."""

from typing import Any

import torch.nn.functional as F
from timm.models.hiera import Hiera, Reroll, Unroll
from torch import Tensor

from mimbench.system.errors import UserError

UNIT = 32
"""Pixels of a mask unit's side."""


class SizedHiera(Hiera):
    """timm's Hiera whose table is stretched (bicubic) to the picture's grid.

    Attention within mask units was trained on an unstretched table: expect a loss far from the
    size of training (arXiv 2311.05613).
    """

    def forward_features(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return the tokens after the last block."""
        self.set_size(x)
        return super().forward_features(x, *args, **options)

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Return the maps of the stages' ends."""
        self.set_size(x)
        return super().forward_intermediates(x, *args, **options)

    def set_size(self, images: Tensor) -> None:
        """Order tokens for pictures of this size."""
        height, width = images.shape[2:]
        if height % UNIT or width % UNIT:
            raise UserError(
                f"Hiera reads images whose sides are multiples of {UNIT}, this one is {height}x{width}"
            )
        if not hasattr(self, "trained_grid"):
            self.trained_grid = tuple(self.tokens_spatial_shape)
        grid = [
            side // stride for side, stride in zip((height, width), self.patch_stride, strict=True)
        ]
        if grid == list(self.tokens_spatial_shape):
            return
        size = (height, width)
        schedule = [self.q_stride] * len(self.stage_ends[:-1])
        self.tokens_spatial_shape = grid
        self.mask_spatial_shape = [
            side // unit for side, unit in zip(grid, self.mask_unit_size, strict=True)
        ]
        self.unroll = Unroll(size, self.patch_stride, schedule)
        self.reroll = Reroll(size, self.patch_stride, schedule, self.stage_ends, self.q_pool)

    def _pos_embed(self, x: Tensor) -> Tensor:
        table, grid = self.pos_embed, tuple(self.tokens_spatial_shape)
        if self.pos_embed_win is not None or table is None or grid == self.trained_grid:
            return super()._pos_embed(x)
        cells = table.float().unflatten(1, self.trained_grid).permute(0, 3, 1, 2)
        cells = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
        return x + cells.flatten(2).transpose(1, 2).to(x.dtype)
