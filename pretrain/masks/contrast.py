"""Pixel contrast: the patches whose pixels vary most are hidden, the rest at random.

HPM's law with a score that needs no network. Contrast orders patches about as well as a young loss
predictor does, so this is the control that any learned mask has to beat.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pretrain.masks import MaskInput, Need, hard


@dataclass(frozen=True, kw_only=True)
class Strategy(hard.Strategy):
    """`hard` with the standard deviation of a patch's pixels in place of its predicted loss."""

    needs: ClassVar[frozenset[Need]] = frozenset({"images"})

    def score(self, inp: MaskInput) -> Tensor | None:
        """Return each patch's contrast (b, n)."""
        if inp.images is None:
            return None
        (rows, columns), images = inp.grid, inp.images.float()
        b, c, height, width = images.shape
        x = images.view(b, c, rows, height // rows, columns, width // columns)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1).std(dim=-1)
