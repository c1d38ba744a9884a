"""The encoder: a ViT that sees some patches, its tensors under timm's names.

Images enter as patches, channel fastest, so that hidden ones are dropped before anything is computed
for them.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mimbench.vit.positions import resize_table, sincos_table
from mimbench.vit.weights import VitSpec
from pretrain.models.blocks import Block, run_block
from pretrain.models.linear import linear


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of (b, n, d), or of a table (1, n, d), at indices (b, k)."""
    if len(values) == 1:
        return values[0][indices]
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class EncoderNoise(NamedTuple):
    """What disturbs an encoder while it learns, drawn for the whole effective batch."""

    veiled: Tensor | None = None
    """(b, k), True where one learned vector stands for a visible patch."""
    keep: Tensor | None = None
    """(b, depth, 2): factors of both branches of each block, 0 where they are left out."""


class PatchEmbed(nn.Module):
    """The patch embedding: a convolution's weights, applied to patches that are already cut out."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, stride=size)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the embeddings of patches (b, k, size * size * 3)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(patches, weight, cast(Tensor, self.proj.bias))


class Encoder(nn.Module):
    """A plain ViT over any subset of patches."""

    pos_embed: Tensor

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
        self.patch_embed = PatchEmbed(spec.embed_dim, spec.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, spec.class_tokens, spec.embed_dim))
        self.register_buffer("pos_embed", fixed_table(spec, spec.embed_dim))
        self.blocks = nn.ModuleList(
            Block(spec.embed_dim, spec.num_heads, spec.mlp_dim, spec.norm_eps)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)

    def forward(
        self,
        patches: Tensor,
        visible: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        *,
        veil: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens (b, c + k, d) after the final norm: class tokens, then raster order.

        Args:
            patches: All patches (b, n, size * size * 3).
            visible: Indices (b, k) of those to look at; by default all of them.
            grid: Rows and columns of the patches where they differ from the specification's.
            veil: Where (b, k) a vector (1, 1, d) stands for what is looked at.
            keep: Factors of the blocks' branches (b, depth, 2), see `EncoderNoise`.
        """
        return self.norm(self.run(self.embed(patches, visible, grid, veil), keep=keep))

    def run(self, x: Tensor, blocks: int | None = None, *, keep: Tensor | None = None) -> Tensor:
        """Return the tokens after the first `blocks` blocks, by default after all of them."""
        for index in range(self.spec.depth if blocks is None else blocks):
            x = self.step(index, x, keep)
        return x

    def step(self, index: int, x: Tensor, keep: Tensor | None) -> Tensor:
        """Return the tokens after one block."""
        block = self.blocks[index]
        if keep is None:
            return run_block(block, x, recompute=self.recompute)
        return run_block(block, x, None, keep[:, index], recompute=self.recompute)

    def outputs(
        self,
        patches: Tensor,
        visible: Tensor | None = None,
        *,
        veil: tuple[Tensor, Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the tokens that enter the first block and those after each, before any norm."""
        found = [self.embed(patches, visible, veil=veil)]
        for index in range(self.spec.depth):
            found.append(self.step(index, found[-1], keep))
        return found

    def embed(
        self,
        patches: Tensor,
        visible: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        veil: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the tokens that enter the first block."""
        table, first = positions(self.pos_embed, self.spec, grid), self.spec.class_tokens
        seen = patches if visible is None else take(patches, visible)
        x = self.patch_embed(seen)
        if veil is not None:
            where, token = veil
            x = torch.where(where.unsqueeze(2), token.to(x.dtype), x)
        x = x + (table[:, first:] if visible is None else take(table[:, first:], visible))
        cls = (self.cls_token + table[:, :first]).expand(len(x), -1, -1)
        return torch.cat([cls.to(x.dtype), x], dim=1)


def fixed_table(spec: VitSpec, width: int) -> Tensor:
    """Return sines and cosines (1, c + n, width) for patches; class tokens have rows of zeros."""
    table = sincos_table(width, spec.grid, class_row=True)
    return torch.cat([table[:, :1].expand(-1, spec.class_tokens, -1), table[:, 1:]], dim=1)


def positions(table: Tensor, spec: VitSpec, grid: tuple[int, int] | None) -> Tensor:
    """Return a position table with class rows, resized where the grid is not the specification's."""
    if grid is None or grid == spec.grid:
        return table
    first = spec.class_tokens
    return resize_table(table, grid=spec.grid, to=grid, prefix=first, rule=spec.position_rule)


def learn_positions(*modules: nn.Module) -> None:
    """Turn the fixed position tables of modules into parameters, under the same names."""
    for module in modules:
        table = module.pos_embed
        assert isinstance(table, Tensor)
        del module.pos_embed
        module.pos_embed = nn.Parameter(table.clone())
