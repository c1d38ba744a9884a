"""AttMask: what the teacher's class token attends to is hidden from the student.

The attention is that of the teacher's last block on the whole image, its mean over heads; only its
order counts. Published inside distillation (see pretrain/objectives/distill), where the number of hidden
patches is drawn for each step; in reconstruction it is fixed, and a hint changes places instead of
shrinking the mask. Hiding everything salient at 75 % is known to hurt there: `probability` and
`soft` keep some randomness.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """AttMask (Kakogeorgiou et al., ECCV 2022)."""

    ratio: float = 0.75
    """Share hidden where the objective does not draw it; the released recipes draw 0.1 to 0.5."""
    order: Literal["high", "hint", "low"] = "high"
    """Hide the most attended patches; the same but for a few hints among them; the least."""
    show: float = 0.1
    """Share of the patches, the most attended, of which a hint may show some."""
    probability: float = 1.0
    """Share of images with guided masks; the others have random ones of the same size."""
    soft: float = 0.0
    """Spread of Gumbel noise on log-attention: 1 samples in proportion to it, 0 takes its order."""

    needs: ClassVar[frozenset[Need]] = frozenset({"attention"})

    def __post_init__(self) -> None:
        for name in ("show", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if self.soft < 0:
            raise ValueError(f"soft is {self.soft}, expected 0 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches where the objective does not draw it."""
        if self.order == "hint" and not self._hints(patches, self.ratio):
            raise UserError(
                f"of {patches} patches, mask.show {self.show:g} at a ratio of {self.ratio:g} shows "
                "none as a hint, which is order: high; raise mask.show"
            )
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Tell whether no image follows attention."""
        del inp
        return self.probability == 0

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without attention (idle, or the teacher left out) it is random."""
        noise, choice = inp.uniform(rng, inp.patches), inp.uniform(rng, inp.patches)
        guided = inp.uniform(rng, 1) < self.probability
        wanted = inp.wanted(hidden_count(inp.patches, self.ratio))
        plain = hide_largest(noise, wanted)
        if inp.attention is None:
            return plain
        keys = inp.attention.float()
        if self.soft:
            gumbel = -(-noise.clamp(min=1e-12).log()).log()
            keys = keys.clamp(min=1e-12).log() + self.soft * gumbel
        if self.order == "low":
            mask = hide_largest(-keys, wanted)
        elif self.order == "hint":
            mask = self._hint(inp, keys, choice, wanted)
        else:
            mask = hide_largest(keys, wanted)
        return torch.where(guided, mask, plain)

    def _hint(self, inp: MaskInput, keys: Tensor, choice: Tensor, wanted: int | Tensor) -> Tensor:
        """Return the mask without some of the most attended patches."""
        top = hide_largest(keys, int(self.show * inp.patches + 1e-9))
        shown = hide_largest(choice.masked_fill(~top, -1.0), self.shown(inp))
        if inp.amount is not None:
            return hide_largest(keys, wanted) & ~shown
        return hide_largest(keys.masked_fill(shown, float("-inf")), wanted)

    def shown(self, inp: MaskInput) -> int:
        """Return how many patches a hint shows: by a draw independent of how many are hidden."""
        return self._hints(inp.patches, self.ratio if inp.amount is None else inp.amount.again)

    def _hints(self, patches: int, share: float) -> int:
        return int(self.show * share * patches + 1e-9)
