"""What people outlined guides the mask: things alike, whole segments, or a share of each; an oracle.

The three orders are the ends of what learned parts could do: `things` treats all that is outlined as
one map (the law of `boxes`), `whole` hides segments entirely, in random order, until the count is met
(what SemMAE moves towards), `within` hides the same share of each (where it begins). It uses
annotations: a yardstick, in no ranking of methods that do without.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest
from pretrain.masks.boxes import covered, shares

NUMBERS = 256
"""Of segments in an image: a byte's values, 0 for what is not annotated."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Objects of a COCO file, or classes of a map."""

    ratio: float = 0.75
    order: Literal["things", "whole", "within"] = "things"
    boost: float = 0.5
    """`things`: how far a patch of a segment rises in the random ranking."""

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})

    def __post_init__(self) -> None:
        if self.boost < 0:
            raise ValueError(f"boost is {self.boost}, expected 0 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether segments make no difference."""
        del inp
        return self.order == "things" and self.boost == 0

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; random where nothing is annotated."""
        keys = inp.uniform(rng, inp.patches)
        if inp.labels is None or self.idle(inp):
            return hide_largest(keys, self.count(inp.patches))
        if self.order == "things":
            keys = keys + self.boost * covered(inp.labels, inp.grid)
        else:
            owner = owners(inp.labels, inp.grid)
            if self.order == "whole":
                ranks = inp.uniform(rng, NUMBERS).argsort(1).argsort(1) + 1
                ranks[:, 0] = 0
                # inside a segment, and outside of all, patches keep their random order
                keys = keys + ranks.gather(1, owner)
            else:
                keys = spread(keys, owner)
        return hide_largest(keys, self.count(inp.patches))


def owners(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the number (b, n) that most of each patch has; ties go to the smaller one."""
    numbers = labels.unique()
    parts = (labels.unsqueeze(1) == numbers.view(1, -1, 1, 1)).float()
    return numbers.long()[shares(parts, grid).argmax(1)]


def spread(keys: Tensor, owner: Tensor) -> Tensor:
    """Return keys (b, n) of which the largest are the same share of every segment, in random order."""
    same = owner.unsqueeze(2) == owner.unsqueeze(1)
    above = (keys.unsqueeze(1) > keys.unsqueeze(2)) & same
    size = same.sum(2)
    # the middle of each patch's slot, so that small segments are not always the first
    return 1 - (above.sum(2) + keys) / size
