"""A module of the user's own in mmseg: its maps as UperNet and the linear heads read them."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mimbench.model import Level
from mimbench.networks.channel_norm import ChannelNorm
from mimbench.networks.completed import CompletedLevels, fitted
from mimbench.networks.module import ModuleWeights, TrainedModule
from transfer.segmentation.convert import BackboneTensors
from transfer.segmentation.framework import MODELS

Reading = Literal["levels", "flat", "frozen"]
"""Four levels, each under a fresh norm; its one map four times, for the rescaling that ViTs have; its
coarsest map, never trained."""


@MODELS.register_module()
class UserLevels(BaseModule):
    """A module of the user's own: `adopt` puts its copy in.

    Args:
        levels: (stride, channels) of each map.
        reading: How the head reads them.
        init_cfg: As for any mmengine module.
    """

    def __init__(
        self,
        levels: Sequence[Sequence[int]],
        *,
        reading: Reading = "levels",
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        own = [Level(stride=stride, channels=channels) for stride, channels in levels]
        self.strides, self.reading = [level.stride for level in own], reading
        self.body = nn.Identity()
        self.norms = nn.ModuleList()
        self.completed: CompletedLevels | None = None
        if reading == "levels":
            self.completed = CompletedLevels(own)
            self.norms.extend(ChannelNorm(level.channels) for level in self.completed.levels)

    def adopt(self, weights: ModuleWeights) -> BackboneTensors:
        """Take a copy of the module; none of its tensors can be accounted for."""
        self.body = TrainedModule(weights)
        if self.reading == "frozen":
            self.body.requires_grad_(requires_grad=False)
        return BackboneTensors(tensors={}, total=0, unused={})

    def init_weights(self) -> None:
        """Leave the weights alone: `adopt` brings them."""

    def train(self, mode: bool = True) -> "UserLevels":  # noqa: FBT001, FBT002
        """Set training mode; batch norms of the body keep their statistics, a frozen one all it has."""
        super().train(mode and self.reading != "frozen")
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (b, c, h, w) of normalised images."""
        assert isinstance(self.body, TrainedModule)
        size = (images.shape[2], images.shape[3])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.reading != "frozen"):
            maps = self.body.maps(fitted(images, self.strides))
        if self.completed is None:
            return (_cut(maps[-1], size, self.strides[-1]),) * (4 if self.reading == "flat" else 1)
        levels = zip(self.norms, self.completed(maps), self.completed.levels, strict=True)
        return tuple(norm(_cut(found, size, level.stride)) for norm, found, level in levels)

    def level_of(self, name: str) -> int | None:
        """Return None: nothing is known of the order of its layers, so that none learns slower."""
        del name


def _cut(found: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Return the map of the picture itself, without what padding added."""
    return found[:, :, : -(-size[0] // stride), : -(-size[1] // stride)]
