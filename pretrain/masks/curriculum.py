"""CL-MAE: a network says which patches to show; it begins as the student's partner and ends as its adversary.

The network looks at all embedded patches; those that it most wants seen stay visible. There is no noise:
the mask is a function of the image. Its own loss holds the reconstruction with a factor that falls from
1 to -1 over training, and three terms that keep masks sharp, of the wanted size and different between
images (Madan et al., WACV 2024). Network and step are in pretrain/models/masker.py and
pretrain/objectives/curriculum.py; this file draws the masks.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """CL-MAE; the defaults are its trainer's."""

    ratio: float = 0.75
    gauss: float = 1.0
    """Weight of the term that moves values away from a half."""
    kl: float = 0.1
    """Weight of the term that keeps the share of patches that are seen."""
    kl_images: int = 256
    """The released code sums that term over the images of one process, 256 in its trainer, so that it
    weighs more in larger batches; here it is the mean over all images times this number."""
    diversity: float = 2.0
    """Weight of the term that moves images' masks apart."""

    needs: ClassVar[frozenset[Need]] = frozenset({"masker"})

    def __post_init__(self) -> None:
        for name in ("gauss", "kl", "diversity"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return False: the network is always asked."""
        del inp
        return False

    def factor(self, epoch: int, epochs: int) -> float:
        """Return the reconstruction's factor in an epoch (from 0): from 1 to -1, never 0."""
        return 1 - 2 * (epoch if 2 * epoch < epochs else epoch + 1) / epochs

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask; without a network it is random."""
        keys = inp.uniform(rng, inp.patches)
        return hide_largest(
            keys if inp.keep is None else -inp.keep.float(), self.count(inp.patches)
        )
