"""Mask R-CNN with FPN: what networks with levels are fine-tuned in, scored by COCO AP.

Protocol `coco-fpn-levels-50`: heads, pictures and schedule of detectron2's ViTDet project; trunk and optimiser
of its Swin configurations (AdamW, no layer decay, FPN with layer norm on four levels, a fresh norm on
each level of the trunk). That project publishes Cascade Mask R-CNN with Swin only (Swin-B, IN-21k:
53.9 box AP), so that no published row stands beside these numbers.
Command: python -m transfer.detection CKPT --benchmark coco-fpn-levels-50 --data COCO
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.config import LazyCall
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from typing_extensions import override

from mimbench.model import Level, Weights, require_fit, strides
from mimbench.networks.channel_norm import ChannelNorm
from mimbench.networks.frozen import level_maps
from mimbench.networks.levels import STRIDES, LevelSpec, LevelWeights, build_levels
from mimbench.networks.module import ModuleSpec, ModuleWeights, TrainedModule
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, Traits
from transfer.detection import recipe
from transfer.detection.prepare import DetectorSetup
from transfer.detection.protocol import DetectorConfig, ResolvedRecipe
from transfer.detection.pyramid import Levels
from transfer.detection.vitdet import detect

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "run"]

VERSION = 1
MAIN_METRIC = "box_ap"
TRAITS = Traits(effort=3, rehearsal=lambda c: replace(c, images=4 * c.batch, eval_every=0))
TASK = "transfer.detection.fpn"

STEPS = 92_187  # 50 epochs x 118,000 images / batch 64
SCHEDULE = 184_375
"""Length on which ViTDet's drops of the learning rate are drawn."""
PLACELESS = ("head.norm.", "norm.")
"""The norm before the classifier: every level has a fresh one."""


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """The defaults are `coco-fpn-levels-50`: Swin-B's values, for every family."""

    learning_rate: float = 4e-5
    weight_decay: float = 0.05
    drop_path: float | None = 0.4


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    return detect(weights, config, out, design, task=(TASK, VERSION))


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
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
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
        plain: Any = OmegaConf.to_container(spec) if isinstance(spec, DictConfig) else spec
        whole = LevelSpec.from_json(plain)
        super().__init__(whole.levels)
        self.spec = whole
        trunk = replace(whole, final_norm=False)
        self.body = build_levels(trunk, drop_path=drop_path, any_size=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the stages' ends."""
        return level_maps(self.body, self.spec, images)


class ModuleTrunk(NormedLevels):
    """A module of the user's own: `adopt` puts its copy in.

    Args:
        levels: (stride, channels) of each map.
    """

    def __init__(self, *, levels: Sequence[Sequence[int]]) -> None:
        super().__init__([Level(stride=int(s), channels=int(c)) for s, c in levels])
        self.body = nn.Identity()

    def adopt(self, weights: ModuleWeights) -> str:
        """Take a copy of the module; return the line that says so."""
        self.body = TrainedModule(weights)
        learns = sum(p.requires_grad for p in self.body.parameters())
        return f"a module of the user's own: {learns} tensors are trained, none accounted for"

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the module's maps."""
        assert isinstance(self.body, TrainedModule)
        return self.body.maps(images)


def design(weights: Weights, config: Config, *, classes: int) -> DetectorSetup:
    """Return Mask R-CNN with FPN over a network's own four levels."""
    known = isinstance(weights, (LevelWeights, ModuleWeights))
    if not known or tuple(strides(weights.spec)) != STRIDES:
        raise UserError(
            f"{weights.name}: an FPN reads maps of strides {list(STRIDES)}, and {weights.spec.model} "
            f"gives {strides(weights.spec)}; a plain ViT's detector is ViTDet: --only coco-vitdet-12"
        )
    require_fit(weights)
    planned = _plan(config)
    lazy = build_model_config(config, planned, weights.spec, classes)
    model = recipe.build_seeded(lazy, seed=config.seed)
    if isinstance(weights, ModuleWeights):
        trunk = model.get_submodule("backbone.bottom_up")
        assert isinstance(trunk, ModuleTrunk)
        report = trunk.adopt(weights)
        # dropped paths are the module's own business
        planned = replace(planned, drop_path=0.0)
    else:
        report = fill(model, weights)
    return DetectorSetup(
        plan=planned,
        report=report,
        model=model,
        optimizer=build_optimizer_config(config),
    )


def _plan(config: Config) -> ResolvedRecipe:
    steps = STEPS * 64 // config.batch if config.images is None else config.images // config.batch
    first, second = (round(drop * SCHEDULE) for drop in config.drops)
    return ResolvedRecipe(
        steps=steps,
        schedule=(first, second, SCHEDULE),
        warmup=config.warmup,
        layer_decay=1.0,
        drop_path=config.drop_path or 0.0,
        decay_all=False,
        global_blocks=(),
        depth=0,
        notes=(
            "Mask R-CNN with FPN on the network's own levels: no published row has this recipe",
        ),
    )


def build_model_config(
    config: Config, plan: ResolvedRecipe, spec: LevelSpec | ModuleSpec, classes: int
) -> DictConfig:
    """Return ViTDet's Mask R-CNN with an FPN in the place of its pyramid."""
    model = recipe.official("common/models/mask_rcnn_vitdet.py", "model")
    pyramid = Levels(scales=(), strides=(*STRIDES, 2 * STRIDES[-1]))
    if isinstance(spec, LevelSpec):
        trunk = LazyCall(LevelTrunk)(spec=spec.to_json(), drop_path=plan.drop_path)
    else:
        trunk = LazyCall(ModuleTrunk)(levels=[[v.stride, v.channels] for v in spec.levels])
    model.backbone = LazyCall(FPN)(
        bottom_up=trunk,
        in_features=[f"stride{stride}" for stride in STRIDES],
        out_channels=config.pyramid_channels,
        norm="LN",
        top_block=LazyCall(recipe.TopPool)(in_feature=pyramid.names[-2]),
        square_pad=config.image_size,
    )
    recipe.edit_heads(model, config, pyramid, classes)
    recipe.normalise(model, spec)
    return model


def build_optimizer_config(config: Config) -> DictConfig:
    """Return AdamW as for detectron2's Swin: norms and bias tables do not decay, no layer decay."""
    optimizer = recipe.official("common/optim.py", "AdamW")
    optimizer.lr, optimizer.weight_decay = config.learning_rate, config.weight_decay
    optimizer.params.weight_decay_norm = 0.0
    names = ("relative_position_bias_table", "pos_embed")
    optimizer.params.overrides = {name: {"weight_decay": 0.0} for name in names}
    return optimizer


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
