"""ViTs inside ViTDet that detectron2's own ViT cannot hold: other positions, MLPs, norms.

Windows, pyramid and heads are detectron2's. What differs from its ViT:

- rotary positions: by default every block has the coordinates of the whole grid, so that a windowed
  block is the global one under a block-diagonal mask, and without windows the trunk is the
  classifier. Only the step of the rotation counts in a window, never its origin (but for CAPI, whose
  windows have their own places).
- relative bias (BEiT): each windowed block holds the table of its window, each global one that of the
  whole grid, without the class token's rows.
- gated MLPs, RMS norms, a norm before the blocks or on the patches.

detectron2 pads a cut window with zeros and attends to them. That means nothing to such positions:
here padding is masked.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from detectron2.modeling.backbone.vit import Block, ViT, get_vit_lr_decay_rate
from timm.layers.mlp import GluMlp, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mimbench.vit.network import ACTIVATIONS
from mimbench.vit.positions import resize_table
from mimbench.vit.rotary import rotate, rotation_angles
from mimbench.vit.weights import VitSpec
from transfer.detection.modern_attention import (
    TABLE,
    BiasedAttention,
    Coordinates,
    RmsNorm,
    RotaryAttention,
)


class ModernBlock(Block):
    """detectron2's block that tells its attention the whole grid and which places are padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the block on a map (b, h, w, d)."""
        shortcut, grid = x, (x.shape[1], x.shape[2])
        x = self.norm1(x)
        if self.window_size > 0:
            x, padded = window_partition(x, self.window_size)
            x = self._attend(x, grid, padding_mask(grid, self.window_size, x))
            x = window_unpartition(x, self.window_size, padded, grid)
        else:
            x = self._attend(x, grid, None)
        x = shortcut + self.drop_path(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def together(self, x: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Run a global block on a map and the prefix tokens (b, n, d) before it; return both."""
        grid, count = (x.shape[1], x.shape[2]), prefix.shape[1]
        tokens = torch.cat([prefix, x.flatten(1, 2)], dim=1)
        tokens = tokens + self.drop_path(self._over_tokens(self.norm1(tokens), grid))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens[:, count:].unflatten(1, grid), tokens[:, :count]

    def _over_tokens(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        attention: Any = self.attn
        qkv = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if isinstance(attention, RotaryAttention):
            spec = attention.spec
            angles = rotation_angles(
                grid,
                spec.head_dim,
                spec.rotation,
                spec.rotation_grid,
                registers=spec.register_tokens,
            )
            q, k = (rotate(t, angles.to(t.device), spec.rotation) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k, v)
        return attention.proj(out.transpose(1, 2).flatten(2))

    def _attend(self, x: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor:
        if isinstance(self.attn, (RotaryAttention, BiasedAttention)):
            return self.attn.attend(x, grid, mask)
        return self.attn(x)


def padding_mask(grid: tuple[int, int], window: int, windows: Tensor) -> Tensor | None:
    """Return which keys (b, 1, 1, n) are places of the map; None where no window is cut."""
    if not any(side % window for side in grid):
        return None
    real = torch.ones(1, *grid, 1, device=windows.device)
    cut, _ = window_partition(real, window)
    keys = cut.flatten(1).bool()[:, None, None]
    return keys.repeat(len(windows) // len(keys), 1, 1, 1)


class RecomputedModernBlock(ModernBlock):
    """The block with its activations computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; dropped paths are the same in both passes."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False)  # pyright: ignore[reportReturnType]


class ModernViT(ViT):
    """detectron2's ViT rebuilt to a specification that its own modules cannot hold.

    Args:
        spec: A `VitSpec` as plain values.
        coordinates: Of rotary positions in windowed blocks.
        prefix: Class tokens and registers that are kept.
        options: What detectron2's ViT takes.
    """

    def __init__(
        self,
        *,
        spec: Mapping[str, Any],
        coordinates: Coordinates = "grid",
        prefix: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.spec = VitSpec.from_json(dict(spec))
        width = self.spec.embed_dim
        side = options["img_size"] // options["patch_size"]
        self.norm_pre = self._norm(width) if self.spec.pre_norm else nn.Identity()
        if self.spec.patch_norm:
            self.patch_embed.norm = self._norm(width)
        if prefix:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, prefix, width))
        for block in self.blocks:
            assert isinstance(block, Block)
            block.__class__ = ModernBlock
            self._rebuild(block, side, coordinates)

    def _norm(self, width: int, **nowhere: None) -> nn.Module:
        # timm's layers also say a device and a dtype, which are None here
        del nowhere
        if self.spec.norm == "rms":
            return RmsNorm(width, self.spec.norm_eps)
        return nn.LayerNorm(width, eps=self.spec.norm_eps)

    def _rebuild(self, block: Any, side: int, coordinates: Coordinates) -> None:
        spec, width = self.spec, self.spec.embed_dim
        block.norm1, block.norm2 = self._norm(width), self._norm(width)
        if not spec.proj_bias:
            block.attn.proj = nn.Linear(width, width, bias=False)
        if spec.is_rotary:
            block.attn.__class__ = RotaryAttention
            block.attn.spec, block.attn.coordinates = spec, coordinates
        if spec.position == "relative":
            block.attn.__class__ = BiasedAttention
            rows = (2 * (block.window_size or side) - 1) ** 2
            table = nn.Parameter(torch.zeros(rows, spec.num_heads))
            block.attn.register_parameter(TABLE, table)
        if spec.mlp == "mlp" and not spec.proj_bias:
            activation = ACTIVATIONS[spec.activation]
            block.mlp = Mlp(width, spec.mlp_dim, act_layer=activation, bias=False)
        if spec.mlp == "swiglu":
            block.mlp = GluMlp(
                width,
                2 * spec.mlp_dim,
                act_layer=nn.SiLU,
                norm_layer=self._norm if spec.mlp_norm else None,  # pyright: ignore[reportArgumentType]
                bias=spec.proj_bias,
                gate_last=False,
            )

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the table (1, h, w, d) by the family's own rule, without the class token's row."""
        assert self.pos_embed is not None
        first = int(self.pretrain_use_cls_token)
        side = math.isqrt(self.pos_embed.shape[1] - first)
        table = resize_table(
            self.pos_embed, grid=(side, side), to=grid, prefix=first, rule=self.spec.position_rule
        )
        return table[:, first:].unflatten(1, grid)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the map (b, d, h, w) of the last block."""
        x = self.patch_embed(x)
        if self.spec.patch_norm:
            x = self.patch_embed.get_submodule("norm")(x)
        if self.pos_embed is not None:
            x = x + self._positions((x.shape[1], x.shape[2]))
        x = self.norm_pre(x)
        prefix: Tensor | None = getattr(self, "prefix_tokens", None)
        if prefix is not None:
            prefix = self.norm_pre(prefix).expand(len(x), -1, -1)
        for block in self.blocks:
            assert isinstance(block, ModernBlock)
            if prefix is None or block.window_size > 0:
                x = block(x)
            else:
                x, prefix = block.together(x, prefix)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


def decay_rate(name: str, *, num_layers: int, lr_decay_rate: float) -> float:
    """Return detectron2's layer decay, with a norm before the blocks among the embeddings."""
    name = name.replace(".norm_pre.", ".patch_embed.").replace(".prefix_tokens", ".pos_embed")
    return get_vit_lr_decay_rate(name, lr_decay_rate=lr_decay_rate, num_layers=num_layers)
