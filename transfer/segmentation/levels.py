"""Networks with levels in mmseg: their four maps, a fresh norm on each, layer decay as published.

Every level passes a norm of its own that starts anew, as in mmseg's ConvNeXt and Swin; the norm before
the classifier has no place. Pictures of any size are read as detectors read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn
from typing_extensions import override

from mimbench.model import require_fit
from mimbench.networks.channel_norm import ChannelNorm
from mimbench.networks.frozen import level_maps
from mimbench.networks.levels import LevelSpec, LevelWeights, build_levels
from mimbench.system.errors import UserError
from transfer.segmentation.convert import BackboneTensors
from transfer.segmentation.framework import MODELS, OPTIM_WRAPPER_CONSTRUCTORS

PLACELESS = ("head.norm.", "norm.")
"""The norm before the classifier."""


@MODELS.register_module()
class TimmLevels(BaseModule):
    """A network with levels.

    Args:
        spec: A `LevelSpec` as plain values.
        drop_path_rate: Largest stochastic depth rate.
        frozen: Never train, no fresh norms: the coarsest level under the network's own last norm.
        init_cfg: As for any mmengine module; weights come from `load_levels`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        *,
        drop_path_rate: float = 0.0,
        frozen: bool = False,
        init_cfg: Any = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self.spec, self.frozen = LevelSpec.from_json(spec), frozen
        trunk = self.spec if frozen else replace(self.spec, final_norm=False)
        self.body = build_levels(trunk, drop_path=drop_path_rate, any_size=True)
        self.norms = nn.ModuleList()
        if frozen:
            self.requires_grad_(requires_grad=False)
        else:
            self.norms.extend(ChannelNorm(level.channels) for level in self.spec.levels)

    def train(self, mode: bool = True) -> "TimmLevels":  # noqa: FBT001, FBT002
        """Set training mode; a frozen network and all batch norms of the body stay as they are."""
        super().train(mode and not self.frozen)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def init_weights(self) -> None:
        """Leave the weights alone: `load_levels` fills every one of them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (b, c, h, w) of normalised images."""
        size = (images.shape[2], images.shape[3])
        images = F.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = level_maps(self.body, self.spec, images)
        cut = [
            m[:, :, : -(-size[0] // v.stride), : -(-size[1] // v.stride)]
            for m, v in zip(maps, self.spec.levels, strict=True)
        ]
        if self.frozen:
            return (last_norm(self.body, cut[-1]),)
        return tuple(norm(m) for norm, m in zip(self.norms, cut, strict=True))

    def level_of(self, name: str) -> int | None:
        """Return a parameter's level of layer decay; None for what is new."""
        body = name.removeprefix("body.")
        return None if body == name else self.spec.layer_of(body)


def last_norm(model: nn.Module, found: Tensor) -> Tensor:
    """Return the last map under the network's own norm before the classifier, if it has one."""
    norm = getattr(getattr(model, "head", None), "norm", None) or getattr(model, "norm", None)
    if not isinstance(norm, nn.LayerNorm):
        return found
    channels = found.permute(0, 2, 3, 1)
    normed = F.layer_norm(channels, (channels.shape[-1],), norm.weight, norm.bias, norm.eps)
    return normed.permute(0, 3, 1, 2).contiguous()


def load_levels(backbone: TimmLevels, weights: LevelWeights) -> BackboneTensors:
    """Fill the network strictly; the norm before the classifier is listed where it has no place."""
    require_fit(weights)
    own = backbone.body.state_dict()
    tensors = {n: t for n, t in weights.tensors.items() if n in own}
    placeless = [n for n in weights.tensors if n not in own]
    if lost := [n for n in placeless if not n.startswith(PLACELESS)]:
        raise UserError(f"{weights.name}: the network has no place for {', '.join(lost[:5])}")
    backbone.body.load_state_dict({**own, **tensors})
    reason = "every level has a fresh norm in its place"
    return BackboneTensors(
        tensors=tensors, total=len(weights.tensors), unused=dict.fromkeys(placeless, reason)
    )


@dataclass(frozen=True, kw_only=True)
class LevelsOptimum:
    """Published fine-tuning values of a family in UperNet."""

    lr: float
    weight_decay: float
    drop_path: float
    decay: float = 1.0
    """Layer decay; 1 for none."""
    groups: int | None = None
    """mmseg's `num_layers` where decay goes by stages; None where it goes by blocks."""
    source: str = ""


SWIN = LevelsOptimum(lr=6e-5, weight_decay=0.01, drop_path=0.3, source="mmsegmentation, Swin")
OPTIMA = {
    "swin": {"": SWIN},
    "convnext": {
        "T": LevelsOptimum(lr=1e-4, weight_decay=0.05, drop_path=0.4, decay=0.9, groups=6, source="ConvNeXt-T"),
        "S": LevelsOptimum(lr=1e-4, weight_decay=0.05, drop_path=0.3, decay=0.9, groups=12, source="ConvNeXt-S"),
        "": LevelsOptimum(lr=1e-4, weight_decay=0.05, drop_path=0.4, decay=0.9, groups=12, source="ConvNeXt-B"),
    },
}  # fmt: skip


def published(spec: LevelSpec) -> tuple[LevelsOptimum, str]:
    """Return a family's values for UperNet, and a remark where none were published for it."""
    table = OPTIMA.get(spec.family)
    if table is None:
        return SWIN, (
            f"no learning rate, weight decay and drop path are published for {spec.model} in "
            f"UperNet; those of {SWIN.source} stand in"
        )
    size = spec.model.rpartition("-")[2]
    found = table.get(size, table[""])
    second = "V2" in spec.model
    remark = f"{spec.model} published no recipe: the values of {found.source}" if second else ""
    return found, remark


def scale_of(spec: Any, level: int | None, name: str, optimum: LevelsOptimum) -> float:
    """Return the factor of a parameter's learning rate."""
    if level is None:
        return 1.0
    if optimum.groups is None:
        return optimum.decay ** (spec.layers - 1 - level)
    # mmseg counts the exponent from its number of groups, though only the stages differ:
    # stem and every downsampling lie at its very end
    staged = name.removeprefix("body.").split(".")
    below = staged[0] == "stem" or "downsample" in staged
    stage = 0 if below else int(staged[1]) + 1
    return optimum.decay ** (optimum.groups + 1 - stage)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LevelDecay(DefaultOptimWrapperConstructor):
    """Layer decay of a network with levels, as `scale_of` says; norms and bias tables do not decay."""

    @override
    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append the parameter groups."""
        del prefix, is_dcn_module
        backbone: Any = module.get_submodule("backbone")
        optimum = LevelsOptimum(**self.paramwise_cfg["optimum"])
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            own = name.removeprefix("backbone.")
            level = backbone.level_of(own) if own != name else None
            scale = scale_of(getattr(backbone, "spec", None), level, own, optimum)
            spared = parameter.ndim == 1 or own.endswith(("bias_table", "pos_embed"))
            decay = 0.0 if spared else self.base_wd
            group = groups.setdefault(
                (scale, decay),
                {
                    "params": [],
                    "param_names": [],
                    "lr": scale * self.base_lr,
                    "weight_decay": decay,
                },
            )
            group["params"].append(parameter)
            group["param_names"].append(name)
        params.extend(groups.values())
