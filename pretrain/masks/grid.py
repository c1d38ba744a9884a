"""Masks of square cells as in SimMIM: 32-pixel cells are hidden at random, whole."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput, Need, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """SimMIM (Xie et al. 2022): 30 of 49 cells, 120 of 196 patches."""

    ratio: float = 0.6
    """Share of cells, rounded up to whole ones."""
    cell: int = 2
    """Patches along a cell's side: 32 pixels are 2 patches of 16, or 4 of 8."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.cell < 1 or not 0 < self.ratio < 1:
            raise ValueError(
                f"cell is {self.cell} and ratio {self.ratio:g}; expected a cell of 1 patch or more "
                "and a ratio between 0 and 1"
            )

    def hidden_cells(self, cells: int) -> int:
        """Return how many cells are hidden."""
        return math.ceil(cells * self.ratio - 1e-9)

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        cells, rest = divmod(patches, self.cell**2)
        if rest:
            raise UserError(
                f"{patches} patches do not divide into cells of {self.cell} x {self.cell}; "
                "set mask.cell to a divisor of both sides of the grid"
            )
        hidden = self.hidden_cells(cells)
        if hidden == cells:
            raise UserError(
                f"a mask ratio of {self.ratio:g} hides all {cells} cells of {self.cell} x "
                f"{self.cell} patches; lower mask.ratio or mask.cell"
            )
        return hidden * self.cell**2

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask."""
        rows, columns = (side // self.cell for side in inp.grid)
        if (rows * self.cell, columns * self.cell) != inp.grid:
            raise UserError(
                f"a grid of {inp.grid[0]} x {inp.grid[1]} patches does not divide into cells of "
                f"{self.cell} x {self.cell}; set mask.cell to a divisor of both sides"
            )
        usual = self.count(inp.patches) // self.cell**2
        wanted = inp.wanted(usual)
        hidden = wanted if isinstance(wanted, int) else wanted // self.cell**2
        cells = hide_largest(inp.uniform(rng, rows * columns), hidden).view(-1, rows, columns)
        wide = cells.repeat_interleave(self.cell, 1).repeat_interleave(self.cell, 2)
        return wide.flatten(1)
