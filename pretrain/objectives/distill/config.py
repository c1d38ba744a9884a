"""The schema of a distillation recipe: base.yaml beside it spells out every default."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.task import Machine
from mimbench.training.learner import LoopConfig
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.sections import EncoderConfig, ImagesConfig, TrainingConfig, moving_values

OFFERED = frozenset({"attention"})
"""What this objective's teacher can provide for masks: it predicts no losses and has no generator."""


@dataclass(frozen=True, kw_only=True)
class ViewsConfig(ImagesConfig):
    """Which images, and the crops that are made of each; `image_size` is the two global ones'."""

    local_size: int = 96
    locals: int = 10
    global_scale: tuple[float, float] = (0.25, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.25)
    colour: bool = True
    """Jitter, grey, blur and solarisation as published; without it crops and flips alone."""

    def __post_init__(self) -> None:
        if self.locals < 0:
            raise ValueError(f"locals is {self.locals}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The projection that class token and patches share."""

    outputs: int = 8192
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    shared: bool = True
    """Whether patches also share the class token's last layer."""
    norm_last: bool = False
    """Keep the last layer's gains at 1."""

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers is {self.layers}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class DistillObjectiveConfig:
    """The cross-entropies between what teacher and student say."""

    cls_weight: float = 1.0
    patch_weight: float = 1.0
    """0 is DINO; its masks then act on the class token alone."""
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature: float = 0.07
    temperature_epochs: int = 30
    """Epochs over which the teacher's temperature rises, the last one reaching it."""
    centre_momentum: float = 0.9

    def temperature(self, epoch: int) -> float:
        """Return the teacher's temperature in an epoch (from 0)."""
        steps = max(self.temperature_epochs - 1, 1)
        rise = self.teacher_temperature - self.teacher_temperature_start
        return self.teacher_temperature_start + rise * min(epoch / steps, 1.0)


@dataclass(frozen=True, kw_only=True)
class AmountConfig:
    """How much of a global crop is hidden, drawn anew."""

    ratio: float = 0.3
    spread: float = 0.2
    """The share is uniform between ratio - spread and ratio + spread."""
    probability: float = 0.5
    """Share of crops that are masked at all; the two crops of an image are drawn independently."""
    per: Literal["step", "crop"] = "step"
    """AttMask draws one share for each step, iBOT one for each crop."""
    start_epoch: int = 0
    """Nothing is hidden before."""

    def __post_init__(self) -> None:
        if not (self.ratio - self.spread >= 0 and self.ratio + self.spread < 1):
            raise ValueError(
                f"ratio {self.ratio} +- {self.spread} leaves the range from 0 to below 1"
            )
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DistillOptimizerConfig:
    """AdamW, its schedules, and what keeps the start stable."""

    base_lr: float = 5e-4
    """Learning rate for a batch of 256; it scales with the batch."""
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = 3.0
    """Largest gradient norm of each parameter tensor."""
    freeze_last_epochs: int = 1
    """Epochs in which the head's last layer stays as it is."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """A distillation run."""

    method: Literal["distillation"] = "distillation"
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(size="small"))
    drop_path: float = 0.1
    """Stochastic depth of the student."""
    head: HeadConfig = field(default_factory=HeadConfig)
    objective: DistillObjectiveConfig = field(default_factory=DistillObjectiveConfig)
    mask: Mapping[str, Any] = field(default_factory=lambda: {"name": "attention"})
    amount: AmountConfig = field(default_factory=AmountConfig)
    teacher_momentum: float = 0.996
    """At the first step; it rises to 1 on half a cosine."""
    data: ViewsConfig = field(default_factory=ViewsConfig)
    optimizer: DistillOptimizerConfig = field(default_factory=DistillOptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        missing = masks.build(self.mask).needs - OFFERED
        if missing:
            raise ValueError(
                f"masks '{self.mask['name']}' need {', '.join(sorted(missing))}, which distillation "
                "does not offer; take attention, block, grid or random"
            )
        if self.objective.patch_weight == 0 and not self.head.shared:
            raise UserError(
                "objective.patch_weight is 0, so the patches' own last layer (head.shared: false) "
                "would never learn; set head.shared: true"
            )
        spec = self.spec()
        if self.data.locals and self.data.local_size % spec.patch_size:
            raise UserError(
                f"local crops of {self.data.local_size} do not divide into patches of "
                f"{spec.patch_size}"
            )
        self.loop()

    def spec(self) -> VitSpec:
        """Return the encoder's specification; positions of small crops are resized as DINO does."""
        return replace(self.encoder.spec(self.data), position_rule="bicubic-offset")

    def loop(self) -> LoopConfig:
        """Return the training loop's configuration; clipping is ours, tensor by tensor."""
        return self.training.loop(clip_grad=None, best="loss")

    def digest(self) -> str:
        """Return a digest of all that may move the weights."""
        return value_digest(moving_values(self))
