"""Four levels for a pyramid out of the ones that a user's module has."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.model import Level
from mimbench.networks.channel_norm import ChannelNorm
from mimbench.networks.levels import STRIDES
from mimbench.system.errors import UserError


class CompletedLevels(nn.Module):
    """Maps of strides 4, 8, 16 and 32: a module's own, and what it lacks made from them.

    A finer level is grown from the finest by transposed convolutions, as ViTDet's simple pyramid grows
    its own; a coarser one, or a gap, is max-pooled from the next finer. Nothing like it is published.

    Args:
        levels: Of the module; other strides are left out.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        own = {v.stride: (i, v.channels) for i, v in enumerate(levels) if v.stride in STRIDES}
        if not own:
            raise UserError(
                f"none of its maps has a stride of {', '.join(map(str, STRIDES))} (they have "
                f"{[v.stride for v in levels]}): pyramids are built on those; resize pictures or maps in maps="
            )
        self.sources: list[int] = []
        self.makers, made = nn.ModuleList(), []
        for stride in STRIDES:
            finer = max((s for s in own if s <= stride), default=min(own))
            at, channels = own[finer]
            self.sources.append(at)
            if finer > stride:
                grown = _grown(channels, finer // stride)
                self.makers.append(grown)
                channels = int(grown[-1].out_channels)  # pyright: ignore[reportArgumentType]
            else:
                self.makers.append(
                    nn.MaxPool2d(stride // finer) if finer < stride else nn.Identity()
                )
            made.append(Level(stride=stride, channels=channels))
        self.levels = tuple(made)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the four maps (b, c, h, w), finest first."""
        return [make(maps[at]) for make, at in zip(self.makers, self.sources, strict=True)]


def lacking(levels: Sequence[Level]) -> list[int]:
    """Return the strides that a pyramid needs and the levels do not have."""
    own = {level.stride for level in levels}
    return [stride for stride in STRIDES if stride not in own]


def _grown(channels: int, factor: int) -> nn.Sequential:
    """Return transposed convolutions that double the sides, and halve the channels, each time."""
    layers: list[nn.Module] = []
    while factor > 1:
        layers.append(nn.ConvTranspose2d(channels, max(1, channels // 2), kernel_size=2, stride=2))
        channels, factor = max(1, channels // 2), factor // 2
        layers += [ChannelNorm(channels), nn.GELU()] if factor > 1 else []
    return nn.Sequential(*layers)


def fitted(images: Tensor, strides: Sequence[int]) -> Tensor:
    """Return pictures that the strides divide: padded for powers of two, else enlarged bilinearly.

    Args:
        images: (b, 3, h, w), normalised.
        strides: Of the maps.
    """
    unit = max(strides)
    height, width = images.shape[2], images.shape[3]
    if all(STRIDES[-1] % stride == 0 for stride in strides):
        return F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
    size = (height + -height % unit, width + -width % unit)
    if size == (height, width):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
