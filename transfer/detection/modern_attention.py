"""Attention over windows of a map with the positions that detectron2's own ViT lacks: rotary, and BEiT's bias."""

from typing import Literal

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import window_partition
from detectron2.modeling.backbone.vit import Attention
from torch import Tensor, nn

from mimbench.vit.rotary import rotate, rotation_angles
from mimbench.vit.weights import VitSpec

Coordinates = Literal["grid", "window"]
"""Of rotary positions in a windowed block: those of the whole grid, or as if the window were the picture."""
TABLE = "relative_position_bias_table"


class RmsNorm(nn.LayerNorm):
    """A norm without mean; a `LayerNorm` by class, so that it is spared weight decay."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the normed input."""
        return F.rms_norm(input, tuple(self.normalized_shape), self.weight, self.eps)


class RotaryAttention(Attention):
    """detectron2's attention with rotated queries and keys."""

    spec: VitSpec
    coordinates: Coordinates = "grid"

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Attend over windows (b, h, w, d) of a map with `grid` places."""
        shown = (x.shape[1], x.shape[2])
        whole = grid if self.coordinates == "grid" else shown
        if self.spec.rotation == "bordered":
            angles = placed_angles(self.spec, whole, x)
        else:
            angles = rotation_angles(
                whole, self.spec.head_dim, self.spec.rotation, self.spec.rotation_grid, shown
            ).to(x.device)
        q, k, v = _heads(self, x)
        q, k = rotate(q, angles, self.spec.rotation), rotate(k, angles, self.spec.rotation)
        return _joined(self, F.scaled_dot_product_attention(q, k, v, attn_mask=mask), x)


def placed_angles(spec: VitSpec, grid: tuple[int, int], windows: Tensor) -> Tensor:
    """Return the angles (b, 1, n, d) of every window's own places (b, 1, n, d), where places count.

    Args:
        spec: The architecture.
        grid: Places of the map; as large as one window where that is the picture.
        windows: (b, h, w, d), the windows of every picture in order.
    """
    angles = rotation_angles(grid, spec.head_dim, spec.rotation, spec.rotation_grid)
    placed = angles.to(windows.device).unflatten(0, grid)[None]
    cut = placed
    if grid != (windows.shape[1], windows.shape[2]):
        cut, _ = window_partition(placed, windows.shape[1])
    return cut.flatten(1, 2)[:, None].repeat(len(windows) // len(cut), 1, 1, 1)


class BiasedAttention(Attention):
    """detectron2's attention with BEiT's bias on the offset of two places."""

    relative_position_bias_table: nn.Parameter

    def attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Attend over windows (b, h, w, d)."""
        del grid
        table = self.relative_position_bias_table
        side = (round(table.shape[0] ** 0.5) + 1) // 2
        index = offsets((x.shape[1], x.shape[2]), side).to(x.device)
        bias = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)[None].to(x.dtype)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        q, k, v = _heads(self, x)
        return _joined(self, F.scaled_dot_product_attention(q, k, v, attn_mask=bias), x)


def _heads(attention: Attention, x: Tensor) -> Tensor:
    """Return queries, keys and values (3, b, heads, n, d)."""
    B, H, W, _ = x.shape
    qkv: Tensor = attention.qkv(x)
    return qkv.reshape(B, H * W, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)


def _joined(attention: Attention, out: Tensor, x: Tensor) -> Tensor:
    return attention.proj(out.transpose(1, 2).reshape(*x.shape[:3], -1))


def offsets(grid: tuple[int, int], side: int) -> Tensor:
    """Return the rows (n, n) of a (2 side - 1)^2 table for every pair of places."""
    places = torch.stack(
        torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), dim=-1
    ).flatten(0, 1)
    apart = places[:, None] - places[None] + side - 1
    return apart[..., 0] * (2 * side - 1) + apart[..., 1]
