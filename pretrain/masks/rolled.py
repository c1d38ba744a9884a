"""One block of an exact size, moved around the edges: hidden, or all that is seen.

CAPI (Darcet et al. 2025) hides everything but the block (`inverse`), Franca calls it cyclic. The
block is a rectangle less a piece of its last row, so that counts are exact; the roll makes every
place equally likely, at the price of blocks that are cut by the picture's edge.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """CAPI's rule; its recipe hides 0.65."""

    ratio: float = 0.75
    order: Literal["inverse", "block"] = "inverse"
    """What the block is: the only thing seen, or the only thing hidden."""
    roll: bool = True
    """Move the block around the edges; without it the border is hidden more often than the middle."""
    aspect: float = 0.5
    """Smallest ratio of height to width; the largest is its inverse. Franca: 0.3."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect is {self.aspect:g}, expected a number above 0, up to 1")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask."""
        count = self.count(inp.patches)
        cells = inp.patches - count if self.order == "inverse" else count
        draws = inp.uniform(rng, 5).double()
        low, high = self.limits(inp.grid, cells)
        height, width = sides(inp.grid, cells, low + draws[:, 0] * (high - low))
        rows, columns = inp.grid
        places = torch.stack(
            [
                (draws[:, 1] * (rows - height + 1)).floor(),
                (draws[:, 2] * (columns - width + 1)).floor(),
                (draws[:, 3] * rows * self.roll).floor(),
                (draws[:, 4] * columns * self.roll).floor(),
            ],
            dim=1,
        )
        block = lay(inp.grid, cells, width, places.long())
        return ~block if self.order == "inverse" else block

    def limits(self, grid: tuple[int, int], cells: int) -> tuple[float, float]:
        """Return the range of the logarithm of height by width in which so many cells fit."""
        fits = math.log(cells / grid[1] ** 2), math.log(grid[0] ** 2 / (cells + 1e-5))
        widest = -math.log(self.aspect)
        # a long grid may hold the block only beyond the limits of its shape
        return min(max(-widest, fits[0]), fits[1]), max(min(widest, fits[1]), fits[0])


def sides(grid: tuple[int, int], cells: int, log_aspect: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width (b,) of rectangles of at least so many cells."""
    aspect = log_aspect.exp()
    width = (cells / aspect).sqrt().ceil().clamp(max=grid[1])
    height = (cells * aspect).sqrt().ceil().clamp(max=grid[0])
    # where rounding made one side too long, the other makes up for it
    height = torch.maximum(height, (cells / width).ceil())
    return height.long(), torch.maximum(width, (cells / height).ceil()).long()


def lay(grid: tuple[int, int], cells: int, width: Tensor, places: Tensor) -> Tensor:
    """Return blocks (b, n): the first `cells` places of a rectangle, row by row, then moved.

    Args:
        grid: Rows and columns.
        cells: Of each block.
        width: The rectangles' (b,).
        places: Top, left, and by how many rows and columns everything moves (b, 4).
    """
    top, left, down, right = (v.view(-1, 1, 1) for v in places.unbind(1))
    wide = width.view(-1, 1, 1)
    rows = torch.arange(grid[0], device=places.device).view(1, -1, 1)
    columns = torch.arange(grid[1], device=places.device).view(1, 1, -1)
    # where each place was before the move, counted from the rectangle's corner
    row, column = (rows - down) % grid[0] - top, (columns - right) % grid[1] - left
    inside = (row >= 0) & (column >= 0) & (column < wide)
    return (inside & (row * wide + column < cells)).flatten(1)
