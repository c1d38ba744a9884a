"""Positions as a learned bias on attention (BEiT, SimMIM), for images of any size."""

from functools import lru_cache

from timm.layers.pos_embed_rel import gen_relative_position_index, resize_rel_pos_bias_table
from torch import Tensor

from mimbench.system.errors import UserError

TOKEN_ROWS = 3
"""Last rows of a table: class token to patches, patches to class token, class token to itself."""


def resize_bias(table: Tensor, *, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return the table (offsets + 3, heads) for another grid of patches, resized as BEiT does."""
    if grid == to:
        return table
    if grid[0] != grid[1]:
        raise UserError(
            f"a relative position table for a {grid[0]}x{grid[1]} grid cannot be resized: "
            "only tables of square grids can"
        )
    rows = (2 * to[0] - 1) * (2 * to[1] - 1) + TOKEN_ROWS
    return resize_rel_pos_bias_table(table, to, (rows, table.shape[1]))


def attention_bias(table: Tensor, *, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Return the bias (1, heads, n, n) of class token and patches, the table resized as BEiT does."""
    table = resize_bias(table, grid=grid, to=to)
    index = _index(to).to(table.device)
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)


@lru_cache(maxsize=8)
def _index(grid: tuple[int, int]) -> Tensor:
    return gen_relative_position_index(grid, class_token=True)
