"""Block-wise masks as in BEiT: rectangles are laid over the image until a budget is spent.

BEiT and iBOT spend at most the budget: 74.5 of 75 patches on average. Where every image must hide
the same number (reconstruction), the rest is topped up with patches drawn at random, which is no
part of either. At most 10 tries in a row may fail; a try draws area, aspect and place.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest

TRIES = 10
"""Failures in a row after which an image is done."""
LONGEST = 80
"""Draws for one image; of 20,000 masks of 75 in 196 patches, none needed more than 40."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """BEiT (Bao et al. 2022): 75 of 196 patches there; iBOT's block masks are the same rule."""

    ratio: float = 75 / 196
    smallest: int | None = None
    """Smallest area drawn for a rectangle, in patches; by default a ninth of the shorter side's
    square, iBOT's rule, which gives BEiT's 16 on a 14 x 14 grid."""
    aspect: float = 0.3
    """Smallest ratio of height to width; the largest is its inverse."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def count(self, patches: int) -> int:
        """Return the number of hidden patches, topped up where rectangles fall short of it."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask: rectangles, topped up unless the objective takes any count."""
        draws, spare = inp.uniform(rng, LONGEST, 4), inp.uniform(rng, inp.patches)
        if inp.amount is not None:
            return self.lay(inp.grid, inp.amount.share.to(inp.device) * inp.patches, draws)
        count = self.count(inp.patches)
        budget = torch.full((inp.batch,), float(count), device=inp.device)
        mask = self.lay(inp.grid, budget, draws)
        return hide_largest(spare + mask, count)

    def lay(self, grid: tuple[int, int], budget: Tensor, draws: Tensor) -> Tensor:
        """Return rectangles (b, n) that cover at most `budget` (b,) patches of each image.

        Args:
            grid: Rows and columns.
            budget: Patches, not necessarily whole: iBOT never rounds its budget.
            draws: Numbers from [0, 1), (b, draws, 4); all images take their tries side by side.
        """
        rows = torch.arange(grid[0], device=draws.device).view(1, -1, 1)
        columns = torch.arange(grid[1], device=draws.device).view(1, 1, -1)
        mask = torch.zeros(len(budget), *grid, dtype=torch.bool, device=draws.device)
        count = torch.zeros_like(budget)
        failures = torch.zeros_like(budget)
        # elsewhere looking costs more than tries that change nothing
        near = mask.device.type == "cpu"
        for number, draw in enumerate(draws.unbind(1)):
            going = (count < budget) & (failures < TRIES)
            if near and number % 8 == 7 and not going.any():
                break
            room = budget - count
            top, left, height, width = self._rectangle(grid, room, draw)
            inside = (rows >= top) & (rows < top + height)
            inside = inside & (columns >= left) & (columns < left + width)
            added = (inside & ~mask).sum((1, 2))
            fits = going & (height < grid[0]).flatten() & (width < grid[1]).flatten()
            fits &= (added >= 1) & (added <= room)
            mask |= inside & fits.view(-1, 1, 1)
            count = count + added * fits
            failures = torch.where(fits, 0.0, failures + 1)
        return mask.flatten(1)

    def _rectangle(
        self, grid: tuple[int, int], room: Tensor, draw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width (b, 1, 1) of one try for each image."""
        smallest = (min(grid) // 3) ** 2 if self.smallest is None else self.smallest
        # late in the budget there is less room than the smallest area: both rules draw between them
        area = smallest + draw[:, 0] * (room - smallest)
        aspect = ((2 * draw[:, 1] - 1) * -math.log(self.aspect)).exp()
        height = (area * aspect).sqrt().round()
        width = (area / aspect).sqrt().round()
        top = (draw[:, 2] * (grid[0] - height + 1).clamp(min=1)).floor()
        left = (draw[:, 3] * (grid[1] - width + 1).clamp(min=1)).floor()
        one, two, three, four = (v.view(-1, 1, 1) for v in (top, left, height, width))
        return one, two, three, four
