"""The recipe as detectron2's own lazy configuration: the objects that a run will build, by name."""

import math
from functools import partial
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall
from detectron2.config import instantiate as detectron2_instantiate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import ViT
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig
from torch import nn

from mimbench.checkpoints.vitdet import PREFIX, VitDetTensors, is_stock, vitdet_arguments
from mimbench.model import Spec
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.vit.network import ACTIVATIONS
from mimbench.vit.normalise import on_bytes
from mimbench.vit.weights import VitSpec
from transfer.detection import attention
from transfer.detection.detector import DetectorConfig, ResolvedRecipe
from transfer.detection.frozen import VITS
from transfer.detection.modern_attention import TABLE
from transfer.detection.pictures import by_picture
from transfer.detection.protocol import Config
from transfer.detection.pyramid import Levels, levels
from transfer.detection.trunk import decay_rate


class TopPool(LastLevelMaxPool):
    """detectron2's extra level over whichever level is the coarsest; its own is tied to p5."""

    def __init__(self, in_feature: str) -> None:
        super().__init__()
        self.in_feature = in_feature


def official(path: str, name: str) -> Any:
    """Return a fresh copy of an object in one of detectron2's own configuration files."""
    config: Any = model_zoo.get_config(path)
    return config[name]


def instantiate(lazy: Any) -> Any:
    """Return the object that a lazy configuration describes, as detectron2 builds it."""
    return detectron2_instantiate(lazy)


def build_model_config(
    config: Config, plan: ResolvedRecipe, spec: VitSpec, converted: VitDetTensors, *, classes: int
) -> DictConfig:
    """Return detectron2's ViTDet Mask R-CNN, edited to the checkpoint and the recipe."""
    model = official("common/models/mask_rcnn_vitdet.py", "model")
    pyramid = levels(converted.patch_size, config.image_size)
    edit_backbone(model.backbone, config, pyramid)
    _edit_vit(model.backbone.net, config, plan, spec, converted)
    edit_heads(model, config, pyramid, classes)
    normalise(model, spec)
    return model


def edit_heads(model: DictConfig, config: DetectorConfig, pyramid: Levels, classes: int) -> None:
    """Set what reads the pyramid: proposals, boxes, masks."""
    _edit_proposals(model.proposal_generator, config, pyramid)
    _edit_heads(model.roi_heads, config, pyramid, classes)
    by_picture(model)


def normalise(model: DictConfig, spec: Spec) -> None:
    """Give pictures the checkpoint's statistics."""
    model.pixel_mean = on_bytes(spec.mean)
    model.pixel_std = on_bytes(spec.std)
    model.input_format = "RGB"


def _edit_vit(
    net: DictConfig, config: Config, plan: ResolvedRecipe, spec: VitSpec, converted: VitDetTensors
) -> None:
    net.update(vitdet_arguments(spec, converted))
    net.img_size = config.image_size
    net.norm_layer = partial(nn.LayerNorm, eps=spec.norm_eps)
    net.act_layer = ACTIVATIONS[spec.activation]
    net.drop_path_rate = plan.drop_path
    net.window_size = config.window
    net.window_block_indexes = [i for i in range(spec.depth) if i not in plan.global_blocks]
    kept = config.prefix == "kept"
    if kept and config.relative_positions and spec.position == "absolute":
        raise UserError(
            "prefix: kept has no decomposed positions, which know no class token: add "
            "relative_positions: false"
        )
    net.use_rel_pos = config.relative_positions and spec.position == "absolute"
    stock = is_stock(spec) and not kept
    net["_target_"] = VITS[stock, config.trunk]
    if not stock:
        net.use_abs_pos = spec.has_table
        net.spec, net.coordinates = spec.to_json(), config.coordinates
        net.prefix = spec.prefix_tokens if kept else 0


def edit_backbone(backbone: DictConfig, config: DetectorConfig, pyramid: Levels) -> None:
    """Set the simple pyramid's levels and the square that pictures are padded to."""
    backbone.out_channels = config.pyramid_channels
    backbone.scale_factors = list(pyramid.scales)
    backbone.top_block = LazyCall(TopPool)(in_feature=pyramid.names[-2])
    backbone.square_pad = config.image_size


def _edit_proposals(proposals: DictConfig, config: DetectorConfig, pyramid: Levels) -> None:
    proposals.in_features = list(pyramid.names)
    proposals.head.in_channels = config.pyramid_channels
    anchors = proposals.anchor_generator
    anchors.strides = list(pyramid.strides)
    anchors.sizes = [[stride * config.anchor_scale] for stride in pyramid.strides]
    proposals.batch_size_per_image = config.proposals
    # in training first, in scoring second
    proposals.pre_nms_topk = (2 * config.candidates, config.candidates)
    proposals.post_nms_topk = (config.candidates, config.candidates)


def _edit_heads(heads: DictConfig, config: DetectorConfig, pyramid: Levels, classes: int) -> None:
    heads.num_classes = classes
    heads.batch_size_per_image = config.regions
    channels, names = config.pyramid_channels, list(pyramid.names[:-1])
    for kind in ("box", "mask"):
        heads[f"{kind}_in_features"] = names
        heads[f"{kind}_pooler"].scales = [1.0 / stride for stride in pyramid.strides[:-1]]
        heads[f"{kind}_head"].input_shape.channels = channels
    heads.box_head.conv_dims = [channels] * config.box_convs
    heads.box_head.fc_dims = [config.box_width]
    heads.box_predictor.input_shape.channels = config.box_width
    # the last one is the deconvolution
    heads.mask_head.conv_dims = [channels] * (config.mask_convs + 1)


def build_optimizer_config(config: Config, plan: ResolvedRecipe, spec: VitSpec) -> DictConfig:
    """Return AdamW with detectron2's layer decay and the official exceptions from weight decay."""
    optimizer = official("common/optim.py", "AdamW")
    optimizer.lr, optimizer.weight_decay = config.learning_rate, config.weight_decay
    optimizer.params.lr_factor_func = partial(
        decay_rate, num_layers=spec.depth, lr_decay_rate=plan.layer_decay
    )
    optimizer.params.weight_decay_norm = None if plan.decay_all else 0.0
    spared = {name: {"weight_decay": 0.0} for name in ("pos_embed", PREFIX, TABLE)}
    optimizer.params.overrides = {} if plan.decay_all else spared
    return optimizer


def build_schedule_config(plan: ResolvedRecipe) -> DictConfig:
    """Return the multiplier of the learning rate over the run: warm-up, then two drops to a tenth."""
    first, second, length = plan.schedule
    return LazyCall(WarmupParamScheduler)(
        scheduler=LazyCall(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01], milestones=[first, second], num_updates=length
        ),
        warmup_length=plan.warmup,
        warmup_method="linear",
        warmup_factor=0.001,
    )


def build_seeded(model_config: DictConfig, *, seed: int) -> nn.Module:
    """Return a model with fresh weights drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        # detectron2's initialisers draw from the global generator only
        torch.manual_seed(seed)
        return instantiate(model_config)


def build_model(model_config: DictConfig, config: Config, *, seed: int) -> nn.Module:
    """Return the detector with fresh weights drawn from the seed, and the options in place."""
    model = build_seeded(model_config, seed=seed)
    if config.attention == "fused":
        attention.fuse(vit_of(model))
    if config.machine.recompute:
        attention.recompute(vit_of(model))
    return model


def vit_of(model: nn.Module) -> ViT:
    """Return the ViT inside a detector."""
    return model.get_submodule("backbone.net")  # pyright: ignore[reportReturnType]


def fill(model: nn.Module, converted: VitDetTensors) -> None:
    """Copy the converted weights into the detector; only relative positions may stay as they are."""
    vit = vit_of(model)
    own = vit.state_dict()
    faults = [f"ViTDet has no {name}" for name in converted.tensors if name not in own]
    faults += [
        f"{name} has shape {tuple(tensor.shape)}, ViTDet's {tuple(own[name].shape)}"
        for name, tensor in converted.tensors.items()
        if name in own and tensor.shape != own[name].shape
    ]
    faults += [
        f"nothing fills {name}"
        for name in own
        if name not in converted.tensors and "rel_pos" not in name
    ]
    if faults:
        raise UserError(f"the backbone does not fit ViTDet: {first_few(faults, separator='; ')}")
    vit.load_state_dict({**own, **converted.tensors})


def side_of(config: Config, patch_size: int) -> int:
    """Return the patches per side of the square that the detector sees."""
    return math.ceil(config.image_size / patch_size)
