"""Training images: decoded fast, cropped and flipped as the recipe says, handed over as bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as vision

from mimbench.data.images import decode
from pretrain.sections import ImagesConfig
from pretrain.sources.images import ImageSource
from pretrain.sources.labels import Labels

Viewing = Callable[[Tensor, InterpolationMode], Tensor]
Place = tuple[float, float, float, float]

MARGIN = 4
"""Pixels that a gentle crop may lie beyond an edge."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(ImagesConfig):
    """Which images, and what is done to them."""

    augment: Literal["crop", "gentle", "window", "none"] = "crop"
    """`crop`: random resized crop and flip; `gentle`: the image at its own scale, moved by up to
    four pixels beyond its edges, and flip (PixMIM); `window`: a part of the image at its own scale,
    and flip; `none`: the image, resized if it must be."""
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    annotations: Path | None = None
    """What people annotated in the images, for masks that follow it: a COCO file, or a folder of maps
    with the images' names."""


class Move(NamedTuple):
    """One random view of an image: what is done to its pixels can be done to its annotations."""

    view: Viewing
    place: Place
    """Top, left, height and width in the image, as shares of it."""
    mirrored: bool

    def __call__(self, pixels: Tensor, mode: InterpolationMode) -> Tensor:
        """Return the view of an image's pixels (c, H, W), or of what belongs to each."""
        found = self.view(pixels, mode)
        return (found.flip(-1) if self.mirrored else found).contiguous()


class Crops:
    """A source's images as uint8 tensors (3, S, S); all randomness is torch's global generator.

    With places or labels an item is a mapping: `image`; `place` (5), see `Move`, and whether it is
    mirrored; `labels` (S, S), the numbers that people gave each pixel.
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        places: bool = False,
        labels: Labels | None = None,
    ) -> None:
        self.source, self.config = source, config
        self.places, self.labels = places, labels
        self.mode = InterpolationMode(config.interpolation)
        self.crop = RandomResizedCrop(config.image_size, config.scale, config.ratio)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        image = self.image(index)
        move = self.move(image)
        view = move(image, self.mode)
        if not self.places and self.labels is None:
            return view
        item = {"image": view}
        if self.places:
            item["place"] = torch.tensor([*move.place, float(move.mirrored)])
        if self.labels is not None:
            numbers = self.labels.of(self.name(index), image)
            item["labels"] = move(numbers, InterpolationMode.NEAREST_EXACT)[0]
        return item

    def image(self, index: int) -> Tensor:
        """Return the image (3, H, W) as it lies."""
        loaded = self.source.load(index)
        return decode(loaded, self.name(index)) if isinstance(loaded, bytes) else loaded

    def plain(self, index: int) -> Tensor:
        """Return one random view, without anything beside it."""
        return self.augment(self.image(index))

    def name(self, index: int) -> str:
        """Return the image's path."""
        return self.source.name(index)

    def augment(self, image: Tensor) -> Tensor:
        """Return one random view of an image (3, H, W)."""
        return self.move(image)(image, self.mode)

    def move(self, image: Tensor) -> Move:
        """Draw one random view of an image (3, H, W)."""
        kind, size = self.config.augment, [self.config.image_size] * 2
        if kind == "none":
            return Move(partial(fitted, size=size), (0.0, 0.0, 1.0, 1.0), mirrored=False)
        draw = {"gentle": self.gentle, "window": self.window, "crop": self.resized}[kind]
        view, place = draw(image)
        return Move(view, place, mirrored=bool(torch.rand(()) < self.config.flip))

    def resized(self, image: Tensor) -> tuple[Viewing, Place]:
        """Draw a random part of the image, to be resized."""
        return self.boxed(image, self.crop.make_params([image]))

    def window(self, image: Tensor) -> tuple[Viewing, Place]:
        """Draw a square of the image at its own scale; a smaller image is enlarged to fill it."""
        sides = image.shape[1:]
        edge = min(self.config.image_size, *sides)
        top, left = (int(torch.randint(n - edge + 1, ())) for n in sides)
        return self.boxed(image, {"top": top, "left": left, "height": edge, "width": edge})

    def boxed(self, image: Tensor, drawn: Mapping[str, Any]) -> tuple[Viewing, Place]:
        """Return a part of the image and where it lies."""
        height, width = image.shape[1:]
        box = {key: int(value) for key, value in drawn.items()}
        place = (
            box["top"] / height,
            box["left"] / width,
            box["height"] / height,
            box["width"] / width,
        )
        return partial(cut, box=box, side=self.config.image_size), place

    def gentle(self, image: Tensor) -> tuple[Viewing, Place]:
        """Draw a square of the image, its shorter side resized and its edges mirrored."""
        side = self.config.image_size
        height, width = image.shape[1:]
        # torchvision's own rounding of the longer side
        long = int(side * max(height, width) / min(height, width))
        extents = (long, side) if height > width else (side, long)
        top, left = (int(torch.randint(n + 2 * MARGIN - side + 1, ())) for n in extents)
        place = (
            (top - MARGIN) / extents[0],
            (left - MARGIN) / extents[1],
            side / extents[0],
            side / extents[1],
        )
        return partial(shifted, corner=(top, left), side=side), place


def fitted(pixels: Tensor, mode: InterpolationMode, *, size: list[int]) -> Tensor:
    """Return pixels as they are, resized if they must be."""
    if list(pixels.shape[1:]) == size:
        return pixels
    return vision.resize(pixels, size, mode, antialias=True)


def cut(pixels: Tensor, mode: InterpolationMode, *, box: Mapping[str, int], side: int) -> Tensor:
    """Return a part of pixels, resized to a square."""
    return vision.resized_crop(pixels, **box, size=[side, side], interpolation=mode, antialias=True)


def shifted(
    pixels: Tensor, mode: InterpolationMode, *, corner: tuple[int, int], side: int
) -> Tensor:
    """Return a square of pixels whose shorter side is resized and whose edges are mirrored."""
    pixels = vision.resize(pixels, [side], mode, antialias=True)
    pixels = vision.pad(pixels, [MARGIN] * 4, padding_mode="reflect")
    top, left = corner
    return pixels[:, top : top + side, left : left + side]
