"""From decoded images to tensors, as a protocol states it: resize, crop, interpolation, views."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from mimbench.data.images import naming
from mimbench.data.lists import ImageList
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.seeds import derive_seed

MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """From a decoded image to a square uint8 tensor; the backbone normalises."""

    size: int = 224
    resize: int | None = 256
    """Length of the shorter side before the centre crop; null leaves the image as it is."""
    interpolation: Interpolation = "bicubic"
    view: int = 0
    """0 is the centre; view v > 0 is the v-th random crop and flip, fixed for each image."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize {self.resize} is smaller than the crop, {self.size}")

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, size, size) uint8."""
        if self.view:
            return TF.pil_to_tensor(self._random_view(image, index))
        if self.resize is not None and min(image.size) != self.resize:
            image = TF.resize(image, [self.resize], MODES[self.interpolation])  # pyright: ignore[reportArgumentType, reportAssignmentType]
        if min(image.size) < self.size:
            raise UserError(
                f"an image of {image.size[0]}x{image.size[1]} is smaller than the crop of "
                f"{self.size}; set a resize, or a smaller image_size"
            )
        return TF.pil_to_tensor(TF.center_crop(image, [self.size, self.size]))  # pyright: ignore[reportArgumentType]

    def _random_view(self, image: Image.Image, index: int) -> Image.Image:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.view, index))
            box = RandomResizedCrop.get_params(image, [0.35, 1.0], [3 / 4, 4 / 3])  # pyright: ignore[reportArgumentType]
            flip = bool(torch.rand(1) < 0.5)
        mode = MODES[self.interpolation]
        view: Any = TF.resized_crop(image, *box, size=[self.size, self.size], interpolation=mode)  # pyright: ignore[reportArgumentType]
        out: Any = TF.hflip(view) if flip else view
        return out

    def key(self) -> dict[str, Any]:
        """Return what identifies this preprocessing in a feature bank's key."""
        return to_mapping(self)


@dataclass(frozen=True, kw_only=True)
class Squash:
    """The whole image resized to a square, its ratio given up; label maps are squashed alike."""

    size: int
    interpolation: Interpolation = "bicubic"

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, size, size) uint8."""
        del index
        squashed: Any = TF.resize(image, [self.size, self.size], MODES[self.interpolation])  # pyright: ignore[reportArgumentType]
        return TF.pil_to_tensor(squashed)

    def key(self) -> dict[str, Any]:
        """Return what identifies this preprocessing in a patch bank's key."""
        return {"squash": to_mapping(self)}


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """The whole image, its longer side shrunk to a length (Lanczos); never enlarged, its ratio kept."""

    size: int

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, h, w) uint8."""
        del index
        small = image.copy()
        small.thumbnail((self.size, self.size), Image.Resampling.LANCZOS)
        return TF.pil_to_tensor(small)

    def key(self) -> dict[str, Any]:
        """Return what identifies the rule in a feature bank's key."""
        return {"thumbnail": to_mapping(self)}


class Pixels(Protocol):
    """From a decoded image to (3, H, W) uint8; the same for the same index in any process."""

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return the image's pixels."""
        ...

    def key(self) -> dict[str, Any]:
        """Return what identifies the rule."""
        ...


class Decoded(Dataset[tuple[int, Tensor]]):
    """(index, uint8 image) of a list, for a DataLoader."""

    def __init__(self, images: ImageList, preprocess: Pixels) -> None:
        self.images, self.preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        image = self.images.open(index)
        with naming(f"{self.images.where}/{self.images.names[index]}"):
            return index, self.preprocess(image, index)
