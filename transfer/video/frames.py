"""Frames and label maps as DINO's script reads them, and the network's view of them."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimbench.model import Triple
from mimbench.system.errors import UserError
from mimbench.vit.backbone import Backbone

IMAGENET_STD = (0.229, 0.224, 0.225)
PUBLISHED_STD = (0.229, 0.224, 0.228)
"""As DINO's script divides: its last number is a slip, and part of the protocol."""


def frame_size(width: int, height: int, *, side: int, multiple: int) -> tuple[int, int]:
    """Return (width, height): the shorter side at `side`, the other rounded down to a multiple."""
    if height > width:
        return side, int(side * height / width // multiple * multiple)
    return int(side * width / height // multiple * multiple), side


def read_frame(path: Path, *, side: int, multiple: int, patch: int) -> Tensor:
    """Return (3, H, W) in [0, 1], resized bilinearly as OpenCV does."""
    # OpenCV is slow to import
    import cv2  # noqa: PLC0415

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot decode {path}: {error}; unpack the archive once more") from error
    width, height = frame_size(pixels.shape[1], pixels.shape[0], side=side, multiple=multiple)
    if width % patch or height % patch or not width or not height:
        raise UserError(
            f"frames of {width}x{height} do not divide into this checkpoint's patches of {patch}; "
            f"set side and multiple to multiples of {patch}"
        )
    resized = cv2.resize(pixels, (width, height))
    return torch.from_numpy(resized).permute(2, 0, 1).float() / 255


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return objects (H, W) from 1; 0 is background, and so is what is marked as void (255)."""
    try:
        with Image.open(path) as image:
            found = np.array(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot decode {path}: {error}; unpack the archive once more") from error
    if found.ndim != 2:
        raise UserError(
            f"{path}: colours, expected a palette image with an object's number at each pixel"
        )
    return np.where(found == 255, 0, found).astype(np.uint8)


def first_labels(labels: NDArray[np.uint8], grid: tuple[int, int]) -> Tensor:
    """Return one-hot labels (objects + 1, rows, columns) on the patch grid: the nearest pixel's."""
    rows, columns = grid
    small = np.array(Image.fromarray(labels).resize((columns, rows), Image.Resampling.NEAREST))
    hot = F.one_hot(torch.from_numpy(small).long(), int(labels.max()) + 1)
    return hot.permute(2, 0, 1).float()


def back_to(prediction: Tensor, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a prediction (h, w) at the label map's own size (H, W), by the nearest pixel."""
    small = Image.fromarray(prediction.cpu().numpy().astype(np.uint8))
    return np.array(small.resize((shape[1], shape[0]), Image.Resampling.NEAREST))


def as_published(images: Tensor, std: Triple) -> Tensor:
    """Return images that the network's own normalisation turns into what the script feeds.

    Args:
        images: (b, 3, H, W), centred: the mean is subtracted.
        std: The network's.
    """
    if tuple(std) != IMAGENET_STD:
        return images
    scale = torch.tensor(IMAGENET_STD) / torch.tensor(PUBLISHED_STD)
    return images * scale.to(images.device).view(-1, 1, 1)


def patch_features(
    network: Backbone, frame: Tensor, *, block: int, norm: bool, published_std: bool
) -> Tensor:
    """Return a frame's patch tokens (n, d) of unit length."""
    device = network.normalise.mean.device
    images = frame[None].to(device)
    if published_std:
        mean = torch.tensor(network.spec.mean, device=device).view(-1, 1, 1)
        images = as_published(images - mean, network.spec.std) + mean
    at = network.spec.depth - block
    patches = network.blocks(images, [at], norm=norm)[0].patches
    return F.normalize(patches[0].flatten(0, 1).float(), dim=1)
