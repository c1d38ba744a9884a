"""As even as possible: of every 2 x 2 patches one is seen (UM-MAE's uniform sampling).

Which corner it is comes from a shuffled pool with equal numbers of the four, so corners are more
even than independent draws would make them (Li et al. 2022). This is the rule for 0.75; at other
ratios further patches are shown, or some cells none, at random.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """UM-MAE's sampling; its second masking is `encoder.secondary: 0.25`."""

    ratio: float = 0.75

    needs: ClassVar[frozenset[Need]] = frozenset()

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask."""
        rows, columns = inp.grid
        if rows % 2 or columns % 2:
            raise UserError(
                f"a grid of {rows} x {columns} patches does not divide into cells of 2 x 2; take an "
                "image size with an even number of patches along each side, or another mask"
            )
        cells = inp.patches // 4
        size = pool(cells)
        corners = inp.uniform(rng, size).argsort(dim=1)[:, :cells] % 4
        places = torch.arange(4, device=inp.device)
        chosen = (corners.unsqueeze(2) == places).view(-1, rows // 2, columns // 2, 2, 2)
        chosen = chosen.permute(0, 1, 3, 2, 4).reshape(inp.batch, inp.patches)
        keys = inp.uniform(rng, inp.patches)
        return hide_largest(keys + ~chosen, inp.wanted(self.count(inp.patches)))


def pool(cells: int) -> int:
    """Return the size of the pool of corners: the least multiple of 4 that holds twice the cells."""
    return -(-2 * cells // 4) * 4
