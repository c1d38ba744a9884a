"""Trunks that give pyramids their maps: a network with levels of timm's, or a module of the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor, nn
from typing_extensions import override

from mimbench.model import Level
from mimbench.networks.channel_norm import ChannelNorm
from mimbench.networks.completed import CompletedLevels
from mimbench.networks.frozen import level_maps
from mimbench.networks.levels import LevelWeights, build_levels
from mimbench.networks.module import ModuleWeights, TrainedModule
from mimbench.system.errors import UserError
from transfer.detection.fpn_recipes import spec_of

PLACELESS = ("head.norm.", "norm.")
"""The norm before the classifier: every level has a fresh one."""


class NormedLevels(Backbone):
    """Maps named by stride as detectron2 wants them, each under a fresh norm."""

    body: nn.Module

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.norms = nn.ModuleList(ChannelNorm(level.channels) for level in self.levels)
        self._out_features = [f"stride{level.stride}" for level in self.levels]

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the network's maps of normalised pictures, finest first."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "NormedLevels":  # noqa: FBT001, FBT002
        """Set training mode; batch norms keep the statistics they were trained with."""
        super().train(mode)
        still(self.body)
        return self

    @override
    def forward(self, images: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the maps of normalised pictures."""
        named = zip(self._out_features, self.norms, self.maps(images), strict=True)
        return {name: norm(found) for name, norm, found in named}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {
            name: ShapeSpec(channels=level.channels, stride=level.stride)
            for name, level in zip(self._out_features, self.levels, strict=True)
        }


class LevelTrunk(NormedLevels):
    """A network with levels of timm's.

    Args:
        spec: A `LevelSpec` as plain values.
        drop_path: Largest stochastic depth rate.
    """

    def __init__(self, *, spec: Mapping[str, Any], drop_path: float) -> None:
        whole = spec_of(spec)
        super().__init__(whole.levels)
        self.spec = whole
        trunk = replace(whole, final_norm=False)
        self.body = build_levels(trunk, drop_path=drop_path, any_size=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the stages' ends."""
        return level_maps(self.body, self.spec, images)


class ModuleTrunk(NormedLevels):
    """A module of the user's own: `adopt` puts its copy in. Levels that it lacks are made from its own.

    Args:
        levels: (stride, channels) of each map.
    """

    def __init__(self, *, levels: Sequence[Sequence[int]]) -> None:
        completed = CompletedLevels([Level(stride=int(s), channels=int(c)) for s, c in levels])
        super().__init__(completed.levels)
        self.completed = completed
        self.body = nn.Identity()

    def adopt(self, weights: ModuleWeights) -> str:
        """Take a copy of the module; return the line that says so."""
        self.body = TrainedModule(weights)
        return report(self.body)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the module's maps, completed."""
        assert isinstance(self.body, TrainedModule)
        return self.completed(self.body.maps(images))


class FlatModule(Backbone):
    """A module of the user's own with one map, in the place of detectron2's ViT.

    Args:
        stride: Of the map.
        channels: Of the map.
        frozen: Never train: no gradient, always in evaluation mode.
    """

    def __init__(self, *, stride: int, channels: int, frozen: bool = False) -> None:
        super().__init__()
        self.stride, self.channels, self.frozen = stride, channels, frozen
        self.body = nn.Identity()
        self._out_features = ["last_feat"]

    def adopt(self, weights: ModuleWeights) -> str:
        """Take a copy of the module; return the line that says so."""
        self.body = TrainedModule(weights)
        if self.frozen:
            self.body.requires_grad_(requires_grad=False)
        return report(self.body)

    def train(self, mode: bool = True) -> "FlatModule":  # noqa: FBT001, FBT002
        """Set training mode; batch norms keep the statistics they were trained with."""
        super().train(mode and not self.frozen)
        still(self.body)
        return self

    @override
    def forward(self, images: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the one map of normalised pictures."""
        assert isinstance(self.body, TrainedModule)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return {"last_feat": self.body.maps(images)[-1]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of the map."""
        return {"last_feat": ShapeSpec(channels=self.channels, stride=self.stride)}


def report(body: nn.Module) -> str:
    """Return the line that says what of a user's module is trained."""
    learns = sum(p.requires_grad for p in body.parameters())
    return f"a module of the user's own: {learns} tensors are trained, none accounted for"


def still(body: nn.Module) -> None:
    """Keep the statistics of a trunk's batch norms."""
    for module in body.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def fill(model: nn.Module, weights: LevelWeights) -> str:
    """Copy the weights into the trunk strictly; return the line that says what was loaded."""
    body = model.get_submodule("backbone.bottom_up.body")
    own = body.state_dict()
    used = {n: t for n, t in weights.tensors.items() if n in own}
    placeless = [n for n in weights.tensors if n not in own]
    if lost := [n for n in placeless if not n.startswith(PLACELESS)]:
        raise UserError(f"{weights.name}: the trunk has no place for {', '.join(lost[:5])}")
    body.load_state_dict({**own, **used})
    text = f"{len(used)} of {len(used)} backbone tensors used"
    if placeless:
        text += f"; {', '.join(placeless)}: every level has a fresh norm in its place"
    return text
