"""The backbones in mmseg's registry: its own MAE and BEiT, and timm's ViT for all the others."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from typing_extensions import override

from mimbench.model import Weights
from mimbench.networks.kinds import plain
from mimbench.networks.levels import LevelWeights
from mimbench.networks.module import ModuleWeights
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.vit.network import build_vit, run_block
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitSpec
from transfer.segmentation.convert import BackboneTensors, Kind, convert, token_grid
from transfer.segmentation.framework import MODELS, BEiT
from transfer.segmentation.levels import TimmLevels, load_levels
from transfer.segmentation.user_levels import UserLevels


@MODELS.register_module()
class TimmMAE(BaseModule):
    """timm's ViT under the names that mmseg's layer-decay constructor knows (it looks for 'MAE').

    It holds what mmseg's MAE cannot: rotary positions, registers, several class tokens or none,
    LayerScale without relative bias, another norm, activation or MLP, taps after the final norm,
    frozen weights, and patches that do not divide the crop (the crop is then enlarged bilinearly to
    the next multiple). All tokens stay in the sequence, so that without a crop of another size it
    computes what the classifier computes; prefix tokens are cut from the maps.

    Args:
        spec: A `VitSpec` as plain values.
        img_size: Height and width of the crop that the position table is for.
        out_indices: Blocks whose patch maps are returned.
        drop_path_rate: Largest stochastic depth rate.
        tap_norm: Pass every tap through the final norm.
        frozen: Never train: no gradient, always in evaluation mode.
        init_cfg: As for any mmengine module; weights come from `load`.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        img_size: Sequence[int],
        out_indices: Sequence[int],
        *,
        drop_path_rate: float = 0.0,
        tap_norm: bool = False,
        frozen: bool = False,
        init_cfg: Any = None,
    ):
        super().__init__(init_cfg=init_cfg)
        given = VitSpec.from_json(spec)
        self.grid = token_grid(given, (img_size[0], img_size[1]))
        self.spec = replace(given, grid=self.grid)
        self.out_indices, self.frozen = tuple(out_indices), frozen
        vit = build_vit(self.spec, drop_path=drop_path_rate)
        self.patch_embed, self.layers = vit.patch_embed, vit.blocks
        self.cls_token, self.reg_token, self.pos_embed = vit.cls_token, vit.reg_token, vit.pos_embed
        self.norm_pre = vit.norm_pre
        normed = tap_norm and given.final_norm == "norm"
        self.norm = cast(nn.Module, vit.norm) if normed else nn.Identity()
        if frozen:
            self.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> "TimmMAE":  # noqa: FBT001, FBT002
        """Set training mode, unless frozen: then the blocks stay as they are at test."""
        return super().train(mode and not self.frozen)

    def init_weights(self) -> None:
        """Leave the weights alone: `load` fills every one of them."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the taps' patch maps (b, d, h, w) of normalised images."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._taps(images)

    def _taps(self, images: Tensor) -> tuple[Tensor, ...]:
        p = self.spec.patch_size
        rows, columns = -(-images.shape[2] // p), -(-images.shape[3] // p)
        if (rows * p, columns * p) != tuple(images.shape[2:]):
            size = (rows * p, columns * p)
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        x = self._embed(self.patch_embed(images).flatten(1, 2), (rows, columns))
        out = []
        for i, block in enumerate(cast(nn.Sequential, self.layers)):
            x = run_block(block, x, self.spec, (rows, columns))
            if i in self.out_indices:
                patches = self.norm(x)[:, self.spec.prefix_tokens :]
                out.append(patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2).contiguous())
        return tuple(out)

    def _embed(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = [t for t in (self.cls_token, self.reg_token) if t is not None]
        prefix = [t.expand(len(x), -1, -1) for t in tokens]
        if self.pos_embed is None:
            return self.norm_pre(torch.cat([*prefix, x], dim=1))
        table = resize_table(
            self.pos_embed,
            grid=self.grid,
            to=grid,
            prefix=self.spec.position_prefix,
            rule=self.spec.position_rule,
        )
        if self.spec.position_rows_for_prefix:
            x = torch.cat([*prefix, x], dim=1) + table
        else:
            x = torch.cat([*prefix, x + table], dim=1)
        return self.norm_pre(x)


@MODELS.register_module()
class TapBEiT(BEiT):
    """mmseg's BEiT, frozen, with the final norm on every tap: for the linear head.

    Args:
        img_size: Height and width of the crop.
        out_indices: Blocks whose patch maps are returned.
        tap_norm: Pass every tap through the final norm.
        options: What mmseg's BEiT takes besides.
    """

    def __init__(
        self, img_size: Sequence[int], out_indices: Sequence[int], *, tap_norm: bool, **options: Any
    ):
        options |= {"img_size": tuple(img_size), "out_indices": tuple(out_indices)}
        super().__init__(final_norm=tap_norm, **options)
        self.requires_grad_(requires_grad=False)

    @override
    def train(self, mode: bool = True) -> None:
        """Stay in evaluation mode (mmseg's BEiT returns nothing here)."""
        super().train(mode=False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the taps' patch maps (b, d, h, w) of normalised images."""
        x, grid = self.patch_embed(inputs)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        out = []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.out_indices:
                tap = self.norm1(x) if self.final_norm else x
                out.append(tap[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous())
        return tuple(out)


def load(
    backbone: nn.Module, weights: Weights, kind: Kind, crop: tuple[int, int], *, tap_norm: bool
) -> BackboneTensors:
    """Fill a backbone strictly; relative bias that the checkpoint lacks starts from zero.

    Args:
        backbone: A module of this kind.
        weights: The checkpoint.
        kind: Which backbone it is.
        crop: Height and width of the crop.
        tap_norm: The backbone norms its taps.
    """
    if isinstance(backbone, TimmLevels) and isinstance(weights, LevelWeights):
        return load_levels(backbone, weights)
    if isinstance(backbone, UserLevels) and isinstance(weights, ModuleWeights):
        return backbone.adopt(weights)
    converted = convert(plain(weights, f"mmseg's {kind}"), kind, crop, tap_norm=tap_norm)
    tensors = dict(converted.tensors)
    own = backbone.state_dict()
    faults = [f"the backbone has no {name}" for name in tensors if name not in own]
    for name, value in own.items():
        if name in tensors and tensors[name].shape != value.shape:
            faults.append(
                f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            )
        elif name not in tensors and name.endswith("relative_position_index"):
            continue
        elif name not in tensors and name.endswith("relative_position_bias_table"):
            tensors[name] = torch.zeros_like(value)
        elif name not in tensors and name.endswith(("gamma_1", "gamma_2")):
            tensors[name] = torch.ones_like(value)
        elif name not in tensors:
            faults.append(f"nothing fills {name}")
    if faults:
        raise UserError(
            f"{weights.name or 'weights'}: the tensors do not fit mmseg's {kind}: "
            + first_few(faults, separator="; ")
        )
    backbone.load_state_dict({**own, **tensors})
    return converted
