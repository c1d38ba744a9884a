"""timm's training augmentation, and its mixing of images, as the published fine-tuning runs had them.

Images are mixed in pairs of neighbours in the epoch's random order, and so many of them as one GPU of
the published run held share a draw. Which ones these are follows from their place in the effective
batch: how many images fit at once, and how many processes there are, moves nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from mimbench.data.preprocess import Interpolation
from mimbench.model import Spec
from mimbench.system.generators import seeded
from mimbench.system.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """timm's training augmentation."""

    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    erase: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    @property
    def mixes(self) -> bool:
        """Images are mixed, which takes an even number of them."""
        return self.mixup > 0 or self.cutmix > 0


def train_transform(
    augment: Augmentation, size: int, interpolation: Interpolation, spec: Spec
) -> Any:
    """Return timm's training transform: normalised tensors, erased after normalisation."""
    chain: Any = create_transform(
        input_size=size,
        is_training=True,
        scale=augment.scale,
        hflip=augment.flip,
        # as in the references: RandAugment stands in for colour jitter
        color_jitter=0.0,
        auto_augment=augment.randaugment,
        interpolation=interpolation,
        re_prob=augment.erase,
        re_mode="pixel",
        re_count=1,
        mean=spec.mean,
        std=spec.std,
    )
    for step in chain.transforms:
        for operation in getattr(step, "ops", ()):
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
    return chain


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Return the image with so many bits a channel; with none of them it is black.

    m9-mstd0.5-inc1 draws 0 bits for one image in some hundreds. The Pillow of the published runs made
    it black; today's refuses.
    """
    if bits < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **options)


class Mixing:
    """timm's mixup and cutmix, drawn for groups of the effective batch."""

    def __init__(self, augment: Augmentation, classes: int, *, group: int, seed: int) -> None:
        self.group, self.seed = group, seed
        self.mix = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=1.0,
            switch_prob=0.5,
            mode="batch",
            label_smoothing=augment.smoothing,
            num_classes=classes,
        )

    def __call__(
        self, images: Tensor, labels: Tensor, *, step: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and soft labels of one micro-batch.

        Args:
            images: (b, 3, H, W); both images of a pair are always here.
            labels: (b,) whole numbers.
            step: Optimizer steps taken before.
            first: Place of the first image in the effective batch.
        """
        mixed, targets = [], []
        for number, rows in groups(first, len(images), self.group):
            part = images[rows]
            order, back = mirrored(len(part), images.device)
            with seeded(derive_seed(self.seed, step, number, 13)):
                x, y = self.mix(part[order], labels[rows][order])
            mixed.append(x[back])
            targets.append(y[back])
        return torch.cat(mixed), torch.cat(targets)


def groups(first: int, count: int, size: int) -> Iterator[tuple[int, slice]]:
    """Yield (group, its rows here) of the micro-batch that begins at place `first`."""
    place = first
    while place < first + count:
        number = place // size
        stop = min((number + 1) * size, first + count)
        yield number, slice(place - first, stop - first)
        place = stop


def mirrored(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return an order in which neighbours face each other across the middle, as timm pairs them."""
    pairs = torch.arange(count, device=device).view(-1, 2)
    order = torch.cat([pairs[:, 0], pairs[:, 1].flip(0)])
    return order, order.argsort()


def make_criterion(augment: Augmentation) -> nn.Module:
    """Return the loss for what the augmentation leaves of the labels."""
    if augment.mixes:
        return SoftTargetCrossEntropy()
    if augment.smoothing > 0:
        return LabelSmoothingCrossEntropy(augment.smoothing)
    return nn.CrossEntropyLoss()
