"""Hard Patches Mining: the patches of the largest predicted loss are hidden, the rest at random.

A share alpha of the hidden patches is chosen by difficulty; it grows with training from easy to
hard (Wang et al. 2023). The other settings are the paper's ablations: `alpha_start = alpha_end = 1`
hides the hardest only, with `order: easiest` the easiest only; `alpha_start > alpha_end` goes from
hard to easy; `alpha_start = alpha_end` is a fixed share.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """HPM (Wang et al., CVPR 2023); the defaults give the released code's counts exactly."""

    ratio: float = 0.75
    alpha_start: float = 0.0
    """Share chosen by difficulty before the first epoch."""
    alpha_end: float = 0.5
    """Share chosen by difficulty in the last epoch."""
    per: Literal["epoch", "step"] = "epoch"
    """When alpha moves; the released code moves it once an epoch."""
    order: Literal["hardest", "easiest"] = "hardest"

    needs: ClassVar[frozenset[Need]] = frozenset({"difficulty"})

    def __post_init__(self) -> None:
        for name in ("alpha_start", "alpha_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def hard_count(self, inp: MaskInput) -> int:
        """Return how many of the hidden patches difficulty chooses at this moment."""
        progress = inp.epoch_progress if self.per == "epoch" else inp.step_progress
        alpha = self.alpha_start + (self.alpha_end - self.alpha_start) * progress
        # a product that should be whole must not fall below it by rounding
        return int(self.count(inp.patches) * alpha + 1e-9)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether the schedule chooses nothing by difficulty yet."""
        return self.hard_count(inp) == 0

    def score(self, inp: MaskInput) -> Tensor | None:
        """Return what orders the patches (b, n)."""
        return inp.difficulty

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without difficulty (idle, or the teacher left out) it is random."""
        keys = inp.uniform(rng, inp.patches)
        hard = self.hard_count(inp)
        score = self.score(inp) if hard else None
        if score is not None:
            ranked = score.float().argsort(dim=1, descending=self.order == "hardest", stable=True)
            keys.scatter_(1, ranked[:, :hard], 2.0)
        return hide_largest(keys, self.count(inp.patches))
