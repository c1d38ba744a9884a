"""Hummingbird's bank views: random crops with jitter, of a picture and its label map alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as TF

from mimbench.system.config import to_mapping
from mimbench.system.seeds import derive_seed
from transfer.dense.patches import Labels

AREA, RATIO = (0.5, 2.0), (3 / 4, 4 / 3)
"""A box larger than the picture is drawn again, ten times at most; then a central one is taken."""
JITTER, CHANCE = 0.1, 0.5


@dataclass(frozen=True, kw_only=True)
class BankView:
    """A random crop to a square, with brightness, contrast, saturation and hue jittered; no flip."""

    size: int
    epoch: int
    """Which of the views of each picture."""
    seed: int = 0

    def __call__(self, image: Image.Image, index: int = 0) -> Tensor:
        """Return (3, size, size) uint8."""
        with self._drawn(index):
            box = _box(image)
            view: Any = TF.resized_crop(
                image,  # pyright: ignore[reportArgumentType]
                *box,
                size=[self.size, self.size],
                interpolation=InterpolationMode.BILINEAR,
            )
            for change in _jitters():
                view = change(view)
        return TF.pil_to_tensor(view)

    def labels(self, image: Image.Image, index: int = 0) -> Labels:
        """Return the same crop of a label map (size, size)."""
        with self._drawn(index):
            top, left, height, width = _box(image)
        cut = image.crop((left, top, left + width, top + height))
        return np.asarray(cut.resize((self.size, self.size), Image.Resampling.NEAREST))

    def key(self) -> dict[str, Any]:
        """Return what identifies the view in a patch bank's key."""
        return {"bank_view": to_mapping(self)}

    @contextmanager
    def _drawn(self, index: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, self.epoch, index))
            yield


def _box(image: Image.Image) -> tuple[int, int, int, int]:
    return RandomResizedCrop.get_params(image, list(AREA), list(RATIO))  # pyright: ignore[reportArgumentType]


def _jitters() -> Iterator[Callable[[Any], Any]]:
    """Yield the jitters that are drawn, in their fixed order."""
    rules = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for rule in rules:
        amount = 1 + JITTER * float(2 * torch.rand(1) - 1)
        if torch.rand(1) < CHANCE:
            yield lambda image, rule=rule, amount=amount: rule(image, amount)
    amount = JITTER * float(2 * torch.rand(1) - 1)
    if torch.rand(1) < CHANCE:
        yield lambda image: TF.adjust_hue(image, amount)
