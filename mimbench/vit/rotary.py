"""ViTs whose positions rotate queries and keys (DINOv3), for images of any size."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor

from mimbench.vit.network import Vit, assemble
from mimbench.vit.positions import rotation_periods
from mimbench.vit.relative import with_prefix
from mimbench.vit.weights import VitSpec


class RotaryVit(Vit):
    """A plain ViT without position table; every block rotates patch queries and keys."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        return with_prefix(self, x.flatten(1, 2))

    def run_block(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tokens after one block."""
        block = self.get_submodule(f"blocks.{index}")
        if not isinstance(block, Block) or not isinstance(block.attn, Attention):
            raise TypeError(f"block {index} is a {type(block).__name__}, expected timm's Block")
        x = x + block.ls1(attend(block.attn, block.norm1(x), grid))
        return x + block.ls2(block.mlp(block.norm2(x)))


def attend(attention: Attention, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return self-attention with patch queries and keys rotated by their place in the grid."""
    qkv = attention.qkv(x).unflatten(2, (3, attention.num_heads, attention.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    angles = rotation_angles(grid, attention.head_dim).to(x.device)
    q, k = rotate(q, angles), rotate(k, angles)
    out = F.scaled_dot_product_attention(q, k, v)
    return attention.proj(out.transpose(1, 2).flatten(2))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Return (b, heads, n, d) with the last tokens (the patches) rotated in pairs half a width apart."""
    prefix = x.shape[2] - len(angles)
    head, body = x[:, :, :prefix], x[:, :, prefix:]
    first, second = body.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([head, turned.to(x.dtype)], dim=2)


@lru_cache(maxsize=16)
def rotation_angles(grid: tuple[int, int], width: int) -> Tensor:
    """Return the angles (h * w, width / 2): rows first, then columns, from patch centres in [-1, 1]."""
    centres = [(torch.arange(n, dtype=torch.float32) + 0.5) / n * 2 - 1 for n in grid]
    places = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).reshape(-1, 2, 1)
    return (2 * math.pi * places / rotation_periods(width)).flatten(1)


def build_rotary_vit(spec: VitSpec) -> RotaryVit:
    """Return a freshly initialised ViT with rotary positions."""
    return assemble(RotaryVit, spec)
