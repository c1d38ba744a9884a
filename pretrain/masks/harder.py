"""The harder of two draws: of two random masks each image gets the one that the student fills in worse.

Two forward passes without gradient and no predictor: a plain baseline for masks that follow a
predicted loss. The student judges with its current weights.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Try several random masks, keep the hardest."""

    ratio: float = 0.75
    draws: int = 2

    needs: ClassVar[frozenset[Need]] = frozenset({"trial"})

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws is {self.draws}, expected 1 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether there is nothing to choose from."""
        del inp
        return self.draws == 1

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without trials (idle, or left out) it is the first draw."""
        count = self.count(inp.patches)
        tries = [hide_largest(inp.uniform(rng, inp.patches), count) for _ in range(self.draws)]
        if inp.trial is None or self.draws == 1:
            return tries[0]
        losses = torch.stack([inp.trial(mask) for mask in tries], dim=1)
        chosen = losses.argmax(dim=1).view(-1, 1, 1).expand(-1, 1, inp.patches)
        return torch.stack(tries, dim=1).gather(1, chosen).squeeze(1)
