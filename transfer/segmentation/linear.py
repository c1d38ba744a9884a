"""Linear head on frozen features: the cheap segmentation task, in a column of its own.

Protocols: `ade-linear-40`: the last layer's normed patches, batch norm, dropout, one 1x1
convolution, 40 000 iterations (as DINOv2 and DINOv3 report). `ade-linear-160`: four levels
concatenated, one 1x1 convolution, 160 000 iterations (iBOT).
Command: `python -m transfer.segmentation ckpt.pth --benchmark ade-linear-40 --data ...`.
Published: iBOT ViT-B 38.3, DINO ViT-B 34.5 (ade-linear-160); DINOv2 ViT-B 47.3 (similar to
ade-linear-40; its own recipe was not released).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mimbench.model import Spec, Weights
from mimbench.networks.levels import LevelSpec
from mimbench.networks.module import ModuleSpec
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, Traits
from mimbench.vit.weights import VitSpec
from transfer.segmentation import heads  # noqa: F401
from transfer.segmentation.convert import Kind, obstacles
from transfer.segmentation.protocol import SegmentationConfig, canonical, rehearsal, tap_blocks
from transfer.segmentation.recipe import SYNC_BN, ModelRecipe, backbone_config, cross_entropy
from transfer.segmentation.train import run_task

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "model_recipe", "run"]

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(
    effort=2,
    rehearsal=rehearsal,
    canonical=canonical,
)
TASK = "transfer.segmentation.linear"


@dataclass(frozen=True, kw_only=True)
class Config(SegmentationConfig):
    """The shared fields, and what the linear head adds."""

    iterations: int = 40_000
    weight_decay: float = 1e-3
    levels: Literal["last", "four"] = "last"
    lr: float = 1e-3
    head_norm: bool = True
    """Batch norm before the linear layer."""
    dropout: float = 0.1
    tap_norm: bool = True
    """The backbone's final norm on every level that is used."""


def model_recipe(spec: Spec, config: Config) -> ModelRecipe:
    """Return the frozen model, its head and optimiser for a checkpoint's architecture."""
    if isinstance(spec, LevelSpec):
        return _with_levels(spec, config)
    if isinstance(spec, ModuleSpec):
        return _of_the_users_own(spec, config)
    if not isinstance(spec, VitSpec):
        raise UserError(f"the linear head needs a ViT or a network with levels, not {spec.model}")
    taps = tap_blocks(spec.depth) if config.levels == "four" else (spec.depth - 1,)
    kind: Kind = "TimmMAE"
    if spec.position == "relative" and not obstacles(spec, "BEiT", config.crop):
        kind = "BEiT"
    refusals = obstacles(spec, kind, config.crop)
    if refusals:
        raise UserError(f"no frozen backbone holds this checkpoint: {'; '.join(refusals)}")
    backbone = backbone_config(spec, kind, config.crop, taps, drop_path=0.0)
    normed = config.tap_norm and spec.final_norm == "norm"
    backbone |= {"tap_norm": normed}
    if kind == "BEiT":
        backbone["type"] = "TapBEiT"
    else:
        backbone["frozen"] = True
    notes = []
    if config.tap_norm and not normed:
        notes.append(f"no norm on the patches: this checkpoint's is '{spec.final_norm}'")
    return ModelRecipe(
        kind=kind,
        backbone=backbone,
        neck=None,
        decode_head=_head([spec.embed_dim] * len(taps), config),
        auxiliary_head=None,
        lr=config.lr,
        layer_decay=None,
        published_decay=True,
        depth=spec.depth,
        tap_norm=normed,
        notes=tuple(notes),
    )


def _with_levels(spec: LevelSpec, config: Config) -> ModelRecipe:
    """Return a linear head on the coarsest map under the network's own last norm."""
    if config.levels == "four":
        raise UserError(
            f"four blocks concatenated are a protocol of plain ViTs; {spec.model} has levels of other "
            "widths and strides (levels: last reads its coarsest map)"
        )
    backbone = {"type": "TimmLevels", "spec": spec.to_json(), "frozen": True}
    return _on_one_map("TimmLevels", backbone, spec, config, tap_norm=spec.final_norm)


def _of_the_users_own(spec: ModuleSpec, config: Config) -> ModelRecipe:
    """Return a linear head on a user's coarsest map, as its `maps` give it."""
    if not spec.levels or config.levels == "four":
        raise UserError(
            f"the linear head (levels: {config.levels}) cannot read {spec.model}: a module of your own "
            "needs maps= and strides=, and levels: last reads its coarsest map"
        )
    maps = [[level.stride, level.channels] for level in spec.levels]
    backbone = {"type": "UserLevels", "levels": maps, "reading": "frozen"}
    return _on_one_map("UserLevels", backbone, spec, config, tap_norm=False)


def _on_one_map(
    kind: Kind,
    backbone: dict[str, Any],
    spec: LevelSpec | ModuleSpec,
    config: Config,
    *,
    tap_norm: bool,
) -> ModelRecipe:
    own = "user module: " if isinstance(spec, ModuleSpec) else ""
    return ModelRecipe(
        kind=kind,
        backbone=backbone,
        neck=None,
        decode_head=_head([spec.levels[-1].channels], config),
        auxiliary_head=None,
        lr=config.lr,
        layer_decay=None,
        published_decay=True,
        depth=spec.layers - 2,
        tap_norm=tap_norm,
        notes=(f"{own}the map of stride {spec.levels[-1].stride}",),
    )


def _head(widths: list[int], config: Config) -> dict[str, Any]:
    return {
        "type": "LinearHead",
        "in_channels": widths,
        "in_index": list(range(len(widths))),
        "input_transform": "resize_concat",
        "channels": sum(widths),
        "dropout_ratio": config.dropout,
        "norm_cfg": SYNC_BN if config.head_norm else None,
        "align_corners": False,
        "loss_decode": cross_entropy(1.0),
    }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Train the head on frozen features and score; `out` receives the curve and the model."""
    return run_task(TASK, VERSION, weights, config, model_recipe(weights.spec, config), out)
