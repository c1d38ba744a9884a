"""Random masks as in MAE: every patch is hidden with the same probability, a fixed number of them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest

NAME = "random"
"""The file cannot have this name: it would shadow the standard library's module."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """MAE (He et al. 2022)."""

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
        return hide_largest(inp.uniform(rng, inp.patches), inp.wanted(self.count(inp.patches)))
