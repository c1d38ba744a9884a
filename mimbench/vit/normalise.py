"""Image statistics: the one place where pixels are normalised, and where they come back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalisation(nn.Module):
    """Subtracts the mean and divides by the deviation that a backbone was trained with."""

    mean: Tensor
    """(3, 1, 1), as `std`; neither belongs to a state dict."""
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images (..., 3, H, W), given in [0, 1], normalised."""
        return (images - self.mean) / self.std

    def of_bytes(self, images: Tensor) -> Tensor:
        """Return images (..., 3, H, W), given in bytes, normalised."""
        return self(images.float() / 255)

    def inverse(self, images: Tensor) -> Tensor:
        """Return normalised images (..., 3, H, W) in [0, 1] again."""
        return images * self.std + self.mean


def on_bytes(values: Sequence[float]) -> list[float]:
    """Return a mean or deviation on the scale 0 to 255, as detectron2's and mmseg's configs state it."""
    return [round(255 * value, 6) for value in values]
