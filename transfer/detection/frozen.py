"""A trunk that stays as it is: no gradients, evaluation mode whatever the detector's, same features throughout."""

from typing import Any

import torch
from detectron2.modeling.backbone.vit import ViT
from torch import Tensor
from typing_extensions import Self, override

from transfer.detection.trunk import ModernViT


class FrozenViT(ViT):
    """detectron2's ViT that training does not reach."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requires_grad_(requires_grad=False)
        self.train()

    @override
    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        del mode
        return super().train(mode=False)

    @override
    @torch.no_grad()
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the map (b, d, h, w) of the last block; nothing is kept for a backward pass."""
        return super().forward(x)


class FrozenModernViT(FrozenViT, ModernViT):
    """The same of a ViT that detectron2's own modules cannot hold."""


VITS = {
    (True, "trained"): ViT,
    (False, "trained"): ModernViT,
    (True, "frozen"): FrozenViT,
    (False, "frozen"): FrozenModernViT,
}
"""Whether detectron2's own ViT can hold the checkpoint, and what the run does with it."""
