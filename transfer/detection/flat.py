"""A user's module with one map in ViTDet: its simple pyramid and heads, nothing of its ViT."""

import math
from dataclasses import replace

from detectron2.config import LazyCall
from omegaconf import DictConfig

from mimbench.networks.module import ModuleSpec, ModuleWeights
from mimbench.system.errors import UserError
from transfer.detection import recipe
from transfer.detection.fpn_trunk import FlatModule
from transfer.detection.prepare import USERS, DetectorSetup
from transfer.detection.protocol import Config, plan_steps
from transfer.detection.pyramid import Levels, levels


def design(weights: ModuleWeights, config: Config, *, classes: int) -> DetectorSetup:
    """Return ViTDet's pyramid and heads over a module's one map."""
    pyramid = pyramid_of(weights.spec, config)
    frozen = config.trunk == "frozen"
    planned = replace(
        plan_steps(config),
        notes=(
            "user module: ViTDet's pyramid and heads on its one map; no windows, no relative positions, no "
            "layer decay, no drop path",
            *(["the trunk is frozen: our own protocol, no published row has it"] if frozen else []),
        ),
    )
    lazy = build_model_config(config, weights.spec, pyramid, classes)
    model = recipe.build_seeded(lazy, seed=config.seed)
    trunk = model.get_submodule("backbone.net")
    assert isinstance(trunk, FlatModule)
    optimizer = recipe.official("common/optim.py", "AdamW")
    optimizer.lr, optimizer.weight_decay = config.learning_rate, config.weight_decay
    optimizer.params.weight_decay_norm = 0.0
    return DetectorSetup(
        plan=planned, report=trunk.adopt(weights), model=model, optimizer=optimizer, ran=USERS
    )


def pyramid_of(spec: ModuleSpec, config: Config) -> Levels:
    """Return the simple pyramid over the module's map, or say why there is none."""
    if not spec.levels:
        raise UserError(
            f"{spec.model} gives an image vector alone; a detector reads a map: pass maps= and strides="
        )
    stride = spec.levels[0].stride
    if stride & (stride - 1):
        near = 2 ** round(math.log2(stride))
        raise UserError(
            f"{spec.model} gives a map of stride {stride}; the pyramid's strides double from a power of two, "
            f"so that nothing is defined for it: let maps= resize the pictures by {stride}/{near} and say "
            f"strides=({near},)"
        )
    return levels(stride, config.image_size)


def build_model_config(
    config: Config, spec: ModuleSpec, pyramid: Levels, classes: int
) -> DictConfig:
    """Return detectron2's ViTDet Mask R-CNN with the module in the ViT's place."""
    model = recipe.official("common/models/mask_rcnn_vitdet.py", "model")
    recipe.edit_backbone(model.backbone, config, pyramid)
    [level] = spec.levels
    model.backbone.net = LazyCall(FlatModule)(
        stride=level.stride, channels=level.channels, frozen=config.trunk == "frozen"
    )
    model.backbone.in_feature = "last_feat"
    recipe.edit_heads(model, config, pyramid, classes)
    recipe.normalise(model, spec)
    return model
