"""Training images: decoded fast, cropped and flipped as the recipe says, handed over as bytes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as vision

from mimbench.data.images import decode
from pretrain.sections import ImagesConfig
from pretrain.sources.images import ImageSource

MARGIN = 4
"""Pixels that a gentle crop may lie beyond an edge."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImagesConfig):
    """Which images, and what is done to them."""

    augment: Literal["crop", "gentle", "none"] = "crop"
    """`crop`: random resized crop and flip; `gentle`: the image at its own scale, moved by up to
    four pixels beyond its edges, and flip (PixMIM); `none`: the image, resized if it must be."""
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)


class Crops:
    """A source's images as uint8 tensors (3, S, S); all randomness is torch's global generator."""

    def __init__(self, source: ImageSource, config: DataConfig) -> None:
        self.source, self.config = source, config
        self.mode = InterpolationMode(config.interpolation)
        self.crop = RandomResizedCrop(config.image_size, config.scale, config.ratio)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        loaded = self.source.load(index)
        image = decode(loaded, self.name(index)) if isinstance(loaded, bytes) else loaded
        return self.augment(image)

    def name(self, index: int) -> str:
        """Return the image's path."""
        return self.source.name(index)

    def augment(self, image: Tensor) -> Tensor:
        """Return one random view of an image (3, H, W)."""
        size = [self.config.image_size, self.config.image_size]
        if self.config.augment == "none":
            if list(image.shape[1:]) == size:
                return image
            return vision.resize(image, size, self.mode, antialias=True)
        view = self.gentle(image) if self.config.augment == "gentle" else self.resized(image)
        if torch.rand(()) < self.config.flip:
            view = view.flip(-1)
        return view.contiguous()

    def resized(self, image: Tensor) -> Tensor:
        """Return a random part of the image, resized."""
        size = [self.config.image_size, self.config.image_size]
        box = self.crop.make_params([image])
        return vision.resized_crop(
            image,
            **{key: int(value) for key, value in box.items()},
            size=size,
            interpolation=self.mode,
            antialias=True,
        )

    def gentle(self, image: Tensor) -> Tensor:
        """Return a square of the image, its shorter side resized and its edges mirrored."""
        side = self.config.image_size
        image = vision.resize(image, [side], self.mode, antialias=True)
        image = vision.pad(image, [MARGIN] * 4, padding_mode="reflect")
        free = [extent - side + 1 for extent in image.shape[1:]]
        top, left = (int(torch.randint(n, ())) for n in free)
        return image[:, top : top + side, left : left + side]
