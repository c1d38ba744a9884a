"""Outgoing attention with noise: patches that all others resemble are hidden.

A patch's salience is how much the embedded patches attend to it when they attend to each other
without projections, before any block: one product, no teacher (SBAM, Choi et al., ECCV 2024). What
is public of SBAM is this fragment; the scale of its noise, its schedule of ratios and its code are
not, so this is not SBAM as its numbers were made.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """Hide the most salient patches, blurred by noise."""

    ratio: float = 0.75
    noise: float = 1.0
    """Largest random number that is added to saliences in [0, 1]; 0 hides strictly by salience."""

    needs: ClassVar[frozenset[Need]] = frozenset({"salience"})

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise:g}, expected 0 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return False: salience counts at every moment."""
        del inp
        return False

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without salience it is random."""
        keys = inp.uniform(rng, inp.patches)
        if inp.salience is not None:
            keys = inp.salience.float() + self.noise * keys
        return hide_largest(keys, inp.wanted(self.count(inp.patches)))


def outgoing(tokens: Tensor) -> Tensor:
    """Return saliences (b, n) in [0, 1] of tokens (b, n, d): column sums of softmax(x x^T), scaled.

    Tokens are not scaled, as published: where their norms differ strongly, few of them get all.
    """
    x = tokens.detach().float()
    total = (x @ x.transpose(1, 2)).softmax(dim=2).sum(dim=1)
    low, high = total.amin(1, keepdim=True), total.amax(1, keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-12)
