"""Several large blocks as in I-JEPA: their union is hidden, then topped up or given back at random.

One number gives both area and aspect of an image's blocks (Assran et al., CVPR 2023). The released
code never lets a block reach the last row or column, and one size holds for a whole batch; here
every image has its own, and `order: published` keeps the dead edge. I-JEPA hides no fixed number:
`counts: own` keeps that where hidden tokens are replaced (distillation). Where the encoder drops them
(reconstruction) every image must hide as many; 0.45 is what four blocks cover on average.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput, Need, hidden_count, hide_largest

AREA, ASPECT = (0.15, 0.2), (0.75, 1.5)
"""A block's share of the patches, and its height over its width."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """I-JEPA's targets as a mask."""

    ratio: float = 0.45
    blocks: int = 4
    order: Literal["even", "published"] = "even"
    """Whether blocks may lie at the last row and column, or never reach them."""
    counts: Literal["fixed", "own"] = "fixed"
    """Whether images hide as many as they must, or the union of their blocks, whatever its size."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}, expected 1 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        if self.counts == "own":
            raise UserError(
                "mask.counts is own, so images hide different numbers of patches; this encoder drops "
                "hidden patches and needs as many of each: take counts=fixed, or distillation, whose "
                "encoder replaces them"
            )
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask."""
        size, places = inp.uniform(rng, 1), inp.uniform(rng, self.blocks, 2)
        union = lay(inp.grid, size[:, 0], places, dead=self.order == "published")
        if self.counts == "own" and inp.amount is not None:
            # the objective still says which images stay whole
            return union & (inp.amount.share.to(inp.device) > 0).unsqueeze(1)
        spare = inp.uniform(rng, inp.patches)
        return hide_largest(spare + union, inp.wanted(self.count(inp.patches)))


def sides(grid: tuple[int, int], draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return height and width (b,) of blocks; one number from [0, 1) gives area and aspect."""
    draws = draws.double()
    cells = (grid[0] * grid[1] * (AREA[0] + draws * (AREA[1] - AREA[0]))).floor()
    aspect = ASPECT[0] + draws * (ASPECT[1] - ASPECT[0])
    height = (cells * aspect).sqrt().round().clamp(1, max(1, grid[0] - 1))
    width = (cells / aspect).sqrt().round().clamp(1, max(1, grid[1] - 1))
    return height, width


def lay(grid: tuple[int, int], size: Tensor, places: Tensor, *, dead: bool) -> Tensor:
    """Return the union (b, n) of blocks.

    Args:
        grid: Rows and columns.
        size: A number from [0, 1) for each image (b,).
        places: Two for each block (b, blocks, 2).
        dead: Leave the last row and column out, as the released code does.
    """
    height, width = (side.view(-1, 1) for side in sides(grid, size))
    more = 0 if dead else 1
    top = (places[..., 0] * (grid[0] - height + more)).floor()
    left = (places[..., 1] * (grid[1] - width + more)).floor()
    rows = torch.arange(grid[0], device=size.device)
    columns = torch.arange(grid[1], device=size.device)
    tall = (rows >= top.unsqueeze(2)) & (rows < (top + height).unsqueeze(2))
    wide = (columns >= left.unsqueeze(2)) & (columns < (left + width).unsqueeze(2))
    return (tall.unsqueeze(3) & wide.unsqueeze(2)).any(1).flatten(1)
