"""What people boxed is hidden more often: an oracle, the motivation of AutoMAE.

A patch's random key rises by `boost` times the share of it that lies inside boxes; the lowest stay
visible. This is AutoMAE's law with the truth in place of a learned map, so `boost: 0` is MAE, bit for
bit, and 0.5 compares with AutoMAE's. It uses annotations: a yardstick for masks that look for things,
in no ranking of methods that do without.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Boxes of objects, of a COCO file or around each number of a map."""

    ratio: float = 0.75
    boost: float = 0.5
    """How far a patch inside a box rises in the random ranking."""

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    def __post_init__(self) -> None:
        if self.boost < 0:
            raise ValueError(f"boost is {self.boost}, expected 0 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether boxes make no difference."""
        del inp
        return self.boost == 0

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; random where nothing is annotated."""
        keys = inp.uniform(rng, inp.patches)
        if inp.labels is not None and self.boost:
            keys = keys + self.boost * covered(inp.labels, inp.grid)
        return hide_largest(keys, self.count(inp.patches))


def covered(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the share (b, n) of each patch that is annotated, for numbers (b, H, W)."""
    return shares((labels > 0).float().unsqueeze(1), grid).flatten(1)


def shares(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean (b, k, n) of maps (b, k, H, W) over each patch."""
    size = (maps.shape[2] // grid[0], maps.shape[3] // grid[1])
    if (size[0] * grid[0], size[1] * grid[1]) != maps.shape[2:]:
        raise UserError(
            f"annotations of {maps.shape[2]} x {maps.shape[3]} pixels do not divide into "
            f"{grid[0]} x {grid[1]} patches"
        )
    return F.avg_pool2d(maps, size).flatten(2)
