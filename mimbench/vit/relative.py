"""ViTs whose positions are a learned bias on attention (BEiT, SimMIM), for images of any size."""

from functools import lru_cache

import torch
from timm.layers.pos_embed_rel import gen_relative_position_index, resize_rel_pos_bias_table
from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.vit.network import Vit, assemble
from mimbench.vit.weights import VitSpec


class RelativeVit(Vit):
    """A plain ViT without position table; every block biases its attention by relative offsets."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        return with_prefix(self, x.flatten(1, 2))

    def run_block(self, index: int, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the tokens after one block."""
        block = self.get_submodule(f"blocks.{index}")
        table = block.get_parameter("attn.relative_position_bias_table")
        bias = attention_bias(table, grid=self.spec.grid, to=grid)
        return block(x, attn_mask=bias.to(x.dtype))


def with_prefix(vit: Vit, patches: Tensor) -> Tensor:
    """Return the tokens with class token and registers before them."""
    tokens = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
    return torch.cat([*(t.expand(len(patches), -1, -1) for t in tokens), patches], dim=1)


def attention_bias(table: Tensor, *, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return the bias (1, heads, n, n) of class token and patches, the table resized as BEiT does."""
    if grid != to:
        if grid[0] != grid[1]:
            raise UserError(
                f"a relative position table for a {grid[0]}x{grid[1]} grid cannot be resized: "
                "only tables of square grids can"
            )
        rows = (2 * to[0] - 1) * (2 * to[1] - 1) + 3
        table = resize_rel_pos_bias_table(table, to, (rows, table.shape[1]))
    index = _index(to).to(table.device)
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)


@lru_cache(maxsize=8)
def _index(grid: tuple[int, int]) -> Tensor:
    return gen_relative_position_index(grid, class_token=True)


def build_relative_vit(spec: VitSpec) -> RelativeVit:
    """Return a freshly initialised ViT with one relative position table in every block."""
    if not spec.class_token or spec.register_tokens:
        raise UserError("relative positions need a class token and no registers, as BEiT has them")
    model = assemble(RelativeVit, spec)
    rows = (2 * spec.grid[0] - 1) * (2 * spec.grid[1] - 1) + 3
    for i in range(spec.depth):
        table = nn.Parameter(torch.zeros(rows, spec.num_heads))
        model.get_submodule(f"blocks.{i}.attn").register_parameter(
            "relative_position_bias_table", table
        )
    return model
