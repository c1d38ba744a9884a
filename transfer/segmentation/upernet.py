"""UperNet: the backbone fine-tuned in mmseg's UperNet, scored by mIoU.

Protocol: ADE20K, 512x512 crops, 160 000 iterations of batch 16, layer-wise learning-rate decay,
sliding-window test (512, stride 341), last iteration (MAE, BEiT, iBOT, HPM).
Command: `python -m transfer.segmentation ckpt.pth --data ADEChallengeData2016`.
Published, single scale: MAE-1600 ViT-B 48.1, ViT-L 53.6; HPM-800 ViT-B 48.5, ViT-L 54.6.
Cost: about 10 GB on each of 8 GPUs at two images each (ViT-B).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimbench.model import Level, Spec, Weights, strides
from mimbench.networks.completed import CompletedLevels, lacking
from mimbench.networks.levels import LevelSpec
from mimbench.networks.module import ModuleSpec
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, Traits
from mimbench.vit.weights import VitSpec
from transfer.segmentation import levels
from transfer.segmentation.convert import Kind, choose
from transfer.segmentation.protocol import (
    Family,
    SegmentationConfig,
    canonical,
    published,
    rehearsal,
    tap_blocks,
)
from transfer.segmentation.recipe import SYNC_BN, ModelRecipe, backbone_config, cross_entropy
from transfer.segmentation.train import run_task

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "model_recipe", "run"]

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(
    effort=2,
    rehearsal=rehearsal,
    canonical=canonical,
    resolved=lambda spec, config: sized(spec, config),
    # the sample data's parts
    beside={"miou_stuff": "textures", "miou_things": "digits"},
)
TASK = "transfer.segmentation.upernet"
LEVELS, CHANNELS = 4, 512
"""Of UperNet on networks with levels, whatever their width."""
FRESH_NORMS = "every level has a fresh norm, as in mmseg's ConvNeXt and Swin"


@dataclass(frozen=True, kw_only=True)
class Config(SegmentationConfig):
    """The shared fields, and what UperNet adds; None and () take the published values."""

    family: Family = "mae"
    """Whose published learning rate, layer decay and drop path; one family for every row of a table."""
    lr: float | None = None
    layer_decay: float | None = None
    drop_path: float | None = None
    taps: tuple[int, ...] = ()
    channels: int | None = None
    """Width of UperNet; None for the backbone's own."""
    aux_channels: int = 256
    relative_bias: bool | None = None
    """Relative position bias from zero in every block; None: as the family, mae yes, ibot no."""
    tap_norm: bool | None = None
    """The final norm on every tap; None: as the family, mae no, ibot yes."""
    published_decay: bool = True
    """Weight decay also on position tables, class token and relative bias, as published runs do."""


def sized(spec: Spec, config: Config) -> dict[str, Any]:
    """Return the fields that family and size decide, filled in."""
    if not isinstance(spec, VitSpec):
        return {}
    optimum, _ = published(config.family, spec)
    ibot = config.family == "ibot"
    usual = {
        "lr": optimum.lr,
        "layer_decay": optimum.layer_decay,
        "drop_path": optimum.drop_path,
        "channels": spec.embed_dim,
        "relative_bias": not ibot,
        "tap_norm": ibot,
    }
    own = {k: v for k in usual if (v := getattr(config, k)) is not None}
    return {**usual, **own, "taps": config.taps or tap_blocks(spec.depth)}


def model_recipe(spec: Spec, config: Config) -> ModelRecipe:
    """Return the model and optimiser for a checkpoint's architecture."""
    if isinstance(spec, LevelSpec):
        return _with_levels(spec, config)
    if isinstance(spec, ModuleSpec):
        return _of_the_users_own(spec, config)
    if not isinstance(spec, VitSpec):
        raise UserError(
            f"UperNet needs a ViT's blocks or a network's levels; {spec.model} has neither"
        )
    optimum, remark = published(config.family, spec)
    own = None not in (config.lr, config.layer_decay, config.drop_path)
    taps = config.taps or tap_blocks(spec.depth)
    ibot = config.family == "ibot"
    relative = not ibot if config.relative_bias is None else config.relative_bias
    norm = ibot if config.tap_norm is None else config.tap_norm
    kind, reasons = choose(spec, config.crop, relative_bias=relative, tap_norm=norm)
    drop_path = optimum.drop_path if config.drop_path is None else config.drop_path
    backbone = backbone_config(spec, kind, config.crop, taps, drop_path)
    norm = norm and kind == "TimmMAE"
    if kind == "TimmMAE":
        backbone["tap_norm"] = norm
    remark = "" if own else remark
    notes = [remark] if remark else []
    if reasons:
        notes.append(f"timm's ViT instead of mmseg's: {'; '.join(reasons)}")
    if kind == "TimmMAE" and relative:
        notes.append("without relative position bias, which only mmseg's backbones have")
    return ModelRecipe(
        kind=kind,
        backbone=backbone,
        neck=_rescaled(spec.embed_dim),
        decode_head=_upernet([spec.embed_dim] * len(taps), config.channels or spec.embed_dim),
        auxiliary_head=_auxiliary(spec.embed_dim, config),
        lr=optimum.lr if config.lr is None else config.lr,
        layer_decay=optimum.layer_decay if config.layer_decay is None else config.layer_decay,
        published_decay=config.published_decay,
        depth=spec.depth,
        tap_norm=norm,
        more_embeddings=spec.register_tokens > 0 or spec.pre_norm,
        notes=tuple(notes),
        unpublished=remark,
    )


def _with_levels(spec: LevelSpec, config: Config) -> ModelRecipe:
    """Return mmseg's UperNet on a network's own four maps: 512 channels, no neck."""
    if len(spec.levels) != LEVELS:
        raise UserError(
            f"{spec.model} gives maps of strides {strides(spec)}, UperNet reads {LEVELS} levels"
        )
    optimum, remark = levels.published(spec)
    said = {"lr": config.lr, "decay": config.layer_decay, "drop_path": config.drop_path}
    optimum = replace(optimum, **{k: v for k, v in said.items() if v is not None})
    backbone = {
        "type": "TimmLevels",
        "spec": spec.to_json(),
        "drop_path_rate": optimum.drop_path,
    }
    notes = (*([remark] if remark else []), FRESH_NORMS)
    return _level_recipe("TimmLevels", backbone, spec, spec.levels, config, optimum, notes)


def _of_the_users_own(spec: ModuleSpec, config: Config) -> ModelRecipe:
    """Return UperNet on a user's module: its levels, completed, or its one map rescaled as a ViT's is."""
    if not spec.levels:
        raise UserError(
            f"{spec.model} gives an image vector alone; UperNet reads maps: pass maps= and strides="
        )
    optimum = replace(levels.SWIN, decay=1.0, lr=config.lr or levels.SWIN.lr)
    remark = f"user module: the values of {optimum.source}, no layer decay, no drop path"
    backbone = {"type": "UserLevels", "levels": [[v.stride, v.channels] for v in spec.levels]}
    if len(spec.levels) == 1:
        width = spec.levels[0].channels
        notes = (remark, "user module: its one map rescaled to four levels, as a ViT's taps are")
        flat = [spec.levels[0]] * LEVELS
        found = _level_recipe(
            "UserLevels", backbone | {"reading": "flat"}, spec, flat, config, optimum, notes
        )
        return replace(found, neck=_rescaled(width))
    made = lacking(spec.levels)
    notes = (remark, FRESH_NORMS)
    if made:
        notes += (
            f"user module: levels of stride {', '.join(map(str, made))} are made from its own",
        )
    whole = CompletedLevels(spec.levels).levels
    return _level_recipe("UserLevels", backbone, spec, whole, config, optimum, notes)


def _level_recipe(
    kind: Kind,
    backbone: dict[str, Any],
    spec: LevelSpec | ModuleSpec,
    read: Sequence[Level],
    config: Config,
    optimum: levels.LevelsOptimum,
    notes: tuple[str, ...],
) -> ModelRecipe:
    widths, decay = [level.channels for level in read], config.weight_decay
    return ModelRecipe(
        kind=kind,
        backbone=backbone,
        neck=None,
        decode_head=_upernet(widths, config.channels or CHANNELS),
        auxiliary_head=_auxiliary(widths[2], config),
        lr=optimum.lr,
        layer_decay=optimum.decay,
        published_decay=config.published_decay,
        depth=spec.layers - 2,
        tap_norm=False,
        weight_decay=optimum.weight_decay if decay == SegmentationConfig.weight_decay else decay,
        levels=to_mapping(optimum),
        notes=notes,
        ran={"protocol": "user module"} if isinstance(spec, ModuleSpec) else {},
    )


def _rescaled(width: int) -> dict[str, Any]:
    """Return the neck that makes four levels of taps of one stride."""
    return {"type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5]}


def _upernet(widths: list[int], channels: int) -> dict[str, Any]:
    return {
        "type": "UPerHead",
        "in_channels": widths,
        "in_index": list(range(len(widths))),
        "pool_scales": (1, 2, 3, 6),
        "channels": channels,
        "dropout_ratio": 0.1,
        "norm_cfg": SYNC_BN,
        "align_corners": False,
        "loss_decode": cross_entropy(1.0),
    }


def _auxiliary(width: int, config: Config) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "in_channels": width,
        "in_index": 2,
        "channels": config.aux_channels,
        "num_convs": 1,
        "concat_input": False,
        "dropout_ratio": 0.1,
        "norm_cfg": SYNC_BN,
        "align_corners": False,
        "loss_decode": cross_entropy(0.4),
    }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Fine-tune and score; `out` receives the curve and the model."""
    return run_task(TASK, VERSION, weights, config, model_recipe(weights.spec, config), out)
