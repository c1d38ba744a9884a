"""Mask R-CNN with FPN: what networks with levels are fine-tuned in, scored by COCO AP.

Protocol `coco-fpn-levels-36`: mmdetection's and detectron2's standard Mask R-CNN, 36 epochs of batch 16,
pictures with short edges of 480 to 800, half of them cropped before; rates, drop path and layer decay as
the family published them. Expected with IN-1k weights (published): Swin-T 46.0 box AP and 41.6 mask AP,
Swin-S 48.5 and 43.3, ConvNeXt-T 46.2 and 41.7; Swin-T of MoBY 46.0 and 41.7.
Protocol `coco-fpn-levels-50`: heads, pictures and schedule of detectron2's ViTDet project; trunk and optimiser
of its Swin configurations (AdamW, no layer decay, FPN with layer norm on four levels, a fresh norm on
each level of the trunk). That project publishes Cascade Mask R-CNN with Swin only (Swin-B, IN-21k:
53.9 box AP), so that no published row stands beside these numbers.
Command: python -m transfer.detection CKPT --benchmark coco-fpn-levels-36 --data COCO
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from detectron2.config import LazyCall
from detectron2.modeling.backbone.fpn import FPN
from omegaconf import DictConfig

from mimbench.model import Spec, Weights, require_fit, strides
from mimbench.networks.completed import lacking
from mimbench.networks.levels import STRIDES, LevelSpec, LevelWeights
from mimbench.networks.module import ModuleSpec, ModuleWeights
from mimbench.system.config import later
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import Footprint, trained
from transfer.detection import recipe
from transfer.detection.detector import DetectorConfig, ResolvedRecipe
from transfer.detection.fpn_recipes import FpnOptimum, published, staged_parameters
from transfer.detection.fpn_trunk import LevelTrunk, ModuleTrunk, fill
from transfer.detection.prepare import USERS, DetectorSetup
from transfer.detection.pyramid import Levels
from transfer.detection.vitdet import detect

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "run"]

VERSION = 1
MAIN_METRIC = "box_ap"
TASK = "transfer.detection.fpn"

STEPS = 92_187  # 50 epochs x 118,000 images / batch 64
SCHEDULE = 184_375
"""Length on which drops of the learning rate are drawn (ViTDet's)."""


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """The defaults are `coco-fpn-levels-50`: Swin-B's values, for every family. None: the family's own."""

    learning_rate: float | None = 4e-5
    weight_decay: float = 0.05
    drop_path: float | None = 0.4
    layer_decay: float | None = later(1.0)
    heads: Literal["vitdet", "standard"] = later("vitdet")
    """`standard`: no norm in FPN and heads, one convolution before proposals, two layers for boxes."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.heads == "standard" and self.box_convs != DetectorConfig.box_convs:
            raise ValueError(
                "standard heads read boxes by two layers, without box_convs: leave it out"
            )
        super().__post_init__()


def settled(spec: Spec, config: Config) -> tuple[FpnOptimum, str]:
    """Return the values of a run for a network, and a remark where they are another's."""
    found, remark = published(spec)
    own = {
        "lr": config.learning_rate,
        "drop_path": config.drop_path,
        "layer_decay": config.layer_decay,
    }
    said = {name: value for name, value in own.items() if value is not None}
    if isinstance(spec, ModuleSpec):
        # the order of its layers is not known, dropped paths are its own business
        said |= {"drop_path": 0.0, "layer_decay": 1.0}
    return replace(found, **said), "" if len(said) == len(own) else remark


def resolved(spec: Spec, config: Config) -> dict[str, Any]:
    """Return the fields that the configuration leaves to the family, filled in."""
    if not isinstance(spec, (LevelSpec, ModuleSpec)):
        return {}  # `design` says what else a plain ViT takes
    found, _ = settled(spec, config)
    values = {
        "learning_rate": found.lr,
        "drop_path": found.drop_path,
        "layer_decay": found.layer_decay,
    }
    return {name: value for name, value in values.items() if getattr(config, name) is None}


def footprint(spec: Spec, config: Config, images: int) -> Footprint:
    """Return memory and disk; pictures of their own shape are as large as their long edge allows."""
    if config.edges:
        side = round((config.image_size * config.edges.longest) ** 0.5)
        machine = replace(config.machine, max_batch=config.most_at_once)
        config = replace(config, image_size=side, machine=machine)
    return trained(spec, config, images)


TRAITS = Traits(
    effort=3,
    footprint=footprint,
    rehearsal=lambda c: replace(c, images=4 * c.batch, eval_every=0),
    resolved=resolved,
)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    return detect(weights, config, out, design, task=(TASK, VERSION))


def design(weights: Weights, config: Config, *, classes: int) -> DetectorSetup:
    """Return Mask R-CNN with FPN over a network's own four levels."""
    given = strides(weights.spec)
    if isinstance(weights, ModuleWeights) and len(given) > 1:
        made = lacking(weights.spec.levels)
    elif isinstance(weights, LevelWeights) and tuple(given) == STRIDES:
        made = []
    else:
        raise UserError(
            f"{weights.name}: an FPN reads maps of strides {list(STRIDES)}, and {weights.spec.model} "
            f"gives {given}; one map goes into ViTDet (--only coco-vitdet-12), of a plain ViT or of a module "
            "of your own"
        )
    require_fit(weights)
    optimum, remark = settled(weights.spec, config)
    planned = plan(config, optimum, remark)
    if made:
        note = f"user module: levels of stride {', '.join(map(str, made))} are made from its own"
        planned = replace(planned, notes=(*planned.notes, note))
    lazy = build_model_config(config, planned, weights.spec, classes)
    model = recipe.build_seeded(lazy, seed=config.seed)
    if isinstance(weights, ModuleWeights):
        trunk = model.get_submodule("backbone.bottom_up")
        assert isinstance(trunk, ModuleTrunk)
        report = trunk.adopt(weights)
    else:
        report = fill(model, weights)
    return DetectorSetup(
        plan=planned,
        report=report,
        model=model,
        optimizer=build_optimizer_config(config, optimum, weights.spec),
        ran=USERS if isinstance(weights, ModuleWeights) else {},
    )


def plan(config: Config, optimum: FpnOptimum, remark: str = "") -> ResolvedRecipe:
    """Return the recipe with nothing left open."""
    steps = STEPS * 64 // config.batch if config.images is None else config.images // config.batch
    first, second = (round(drop * SCHEDULE) for drop in config.drops)
    standard = config.heads == "standard"
    note = "Mask R-CNN with FPN on the network's own levels"
    return ResolvedRecipe(
        steps=steps,
        schedule=(first, second, SCHEDULE),
        warmup=config.warmup,
        layer_decay=optimum.layer_decay,
        drop_path=optimum.drop_path,
        decay_all=False,
        global_blocks=(),
        depth=0,
        notes=(
            note if standard else f"{note}: no published row has this recipe",
            *([remark] if remark else []),
        ),
    )


def build_model_config(
    config: Config, planned: ResolvedRecipe, spec: LevelSpec | ModuleSpec, classes: int
) -> DictConfig:
    """Return Mask R-CNN over an FPN: ViTDet's with layer norms, or the standard one without."""
    standard = config.heads == "standard"
    kind = "mask_rcnn_fpn" if standard else "mask_rcnn_vitdet"
    model = recipe.official(f"common/models/{kind}.py", "model")
    pyramid = Levels(scales=(), strides=(*STRIDES, 2 * STRIDES[-1]))
    if isinstance(spec, LevelSpec):
        trunk = LazyCall(LevelTrunk)(spec=spec.to_json(), drop_path=planned.drop_path)
    else:
        trunk = LazyCall(ModuleTrunk)(levels=[[v.stride, v.channels] for v in spec.levels])
    model.backbone = LazyCall(FPN)(
        bottom_up=trunk,
        in_features=[f"stride{stride}" for stride in STRIDES],
        out_channels=config.pyramid_channels,
        norm="" if standard else "LN",
        top_block=LazyCall(recipe.TopPool)(in_feature=pyramid.names[-2]),
        square_pad=0 if config.edges else config.image_size,
    )
    recipe.edit_heads(model, config, pyramid, classes)
    if standard:
        model.roi_heads.box_head.conv_dims = []
        model.roi_heads.box_head.fc_dims = [config.box_width] * 2
    recipe.normalise(model, spec)
    return model


def build_optimizer_config(config: Config, optimum: FpnOptimum, spec: Spec) -> DictConfig:
    """Return AdamW with the family's exceptions from weight decay and its layer decay."""
    optimizer = recipe.official("common/optim.py", "AdamW")
    optimizer.lr, optimizer.weight_decay = optimum.lr, config.weight_decay
    if isinstance(spec, LevelSpec) and optimum.layer_decay < 1:
        optimizer.params = LazyCall(staged_parameters)(
            base_lr=optimum.lr,
            weight_decay=config.weight_decay,
            spec=spec.to_json(),
            layer_decay=optimum.layer_decay,
            joined=optimum.joined,
        )
        return optimizer
    optimizer.params.weight_decay_norm = 0.0
    names = ("relative_position_bias_table", "pos_embed")
    optimizer.params.overrides = {name: {"weight_decay": 0.0} for name in names}
    return optimizer
