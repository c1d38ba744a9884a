"""Sections that recipes of reconstruction alone have: a disturbed encoder, the objective, the teacher."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mimbench.vit.weights import VitSpec
from pretrain.models.reconstruction import LossPrediction, TargetName, Weights
from pretrain.sections import EncoderConfig, ImagesConfig


@dataclass(frozen=True, kw_only=True)
class MaskedEncoderConfig(EncoderConfig):
    """The encoder of a reconstruction, and what disturbs it while it learns."""

    class_tokens: int = 1
    """Tokens that stand for the image; Pixio has eight."""
    positions: Literal["fixed", "learned"] = "fixed"
    """Sines and cosines, or tables that are learned, in encoder and decoders."""
    drop_path: float = 0.0
    """Chance at which the last block's branches are left out; it rises linearly over the blocks."""
    secondary: float = 0.0
    """Share of the visible patches that one learned vector stands for (UM-MAE: 0.25)."""

    def __post_init__(self) -> None:
        if self.class_tokens < 1:
            raise ValueError(f"class_tokens is {self.class_tokens}, expected 1 or more")
        for name in ("drop_path", "secondary"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a share below 1")

    def spec(self, data: ImagesConfig) -> VitSpec:
        """Return the specification for images as the data section gives them."""
        return replace(super().spec(data), class_tokens=self.class_tokens)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted for hidden patches."""

    target: TargetName = "normalised"
    """Pixels, pixels normalised within each patch, or the features of a network."""
    features_from: Path | None = None
    """The checkpoint of the network for the targets `dino` and `clip`."""
    predict_loss: LossPrediction = "relative"
    """How the loss predictor is trained; `none` leaves it out, which is MAE."""
    epsilon: float = 0.0
    """Added inside the relative loss's logarithm; the released code has 1e-6."""
    loss_weight: float = 1.0
    """Weight of the predictor's loss beside the reconstruction's."""
    predictor: Literal["own", "shared"] = "own"
    """The loss predictor: a decoder of its own, or a head on the reconstruction decoder."""
    exit: int | None = None
    """Block of the reconstruction decoder after which the shared predictor reads; the last."""
    share: float = 1.0
    """Share of the hidden patches that decoders are given and answer for, chosen evenly over the
    teacher's order where it gives one."""
    masks: int = 1
    """Masks of every image in a step: they share one look of the teacher, and their random parts are
    cuts of one permutation."""
    weights: Weights = "none"
    """What weighs hidden patches in the reconstruction loss; mean 1 in every image."""
    weights_temperature: float = 1.0
    """Smaller is sharper: a weight is exp(value in [0, 1] / temperature)."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share:g}, expected a share above 0, up to 1")
        if self.masks < 1:
            raise ValueError(f"masks is {self.masks}, expected 1 or more")
        if self.weights_temperature <= 0:
            raise ValueError(f"weights_temperature is {self.weights_temperature:g}, not above 0")
        if self.exit is not None and self.predictor == "own":
            raise ValueError(
                f"exit: {self.exit} is where a shared predictor reads; set predictor: shared"
            )
        if self.target in {"dino", "clip"} and self.features_from is None:
            raise ValueError(f"the target '{self.target}' needs features_from, a checkpoint")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher follows the student, and how often and how closely it looks."""

    decay_start: float = 0.999
    decay_end: float = 0.9999
    ramp_epochs: int = 100
    """Epochs over which the decay rises; the released code takes 100 whatever the total."""
    keep: bool = False
    """Keep the average also where neither mask nor target asks for it (to evaluate it later)."""
    every: int = 1
    """Ask the teacher on every n-th optimizer step; in between masks are random, or follow the bank;
    0, with a bank: never."""
    tokens: float = 1.0
    """Share of the patches that the teacher computes for masks, by looking at a smaller image."""
    look: Literal["whole", "quarter"] = "whole"
    """What the teacher sees when it predicts losses for masks: every patch, or a random quarter."""
    bank: bool = False
    """Remember the losses that the student predicted for every image, a byte for each place, and
    follow them where the teacher is not asked."""
    bank_rate: float = 0.5
    """How far a new prediction moves a remembered one."""

    def __post_init__(self) -> None:
        if self.every < (0 if self.bank else 1):
            raise ValueError(f"every is {self.every}, expected 1 or more, or 0 with bank: true")
        if not 0 < self.bank_rate <= 1:
            raise ValueError(f"bank_rate is {self.bank_rate:g}, expected a share above 0, up to 1")
        if not 0 < self.tokens <= 1:
            raise ValueError(f"tokens is {self.tokens}, expected a share above 0, up to 1")
        if self.look == "quarter" and self.tokens != 1:
            raise ValueError(
                f"look: quarter and tokens: {self.tokens:g} are two ways to save; choose one"
            )

    def due(self, step: int) -> bool:
        """Tell whether the teacher is asked at a step."""
        return self.every > 0 and step % self.every == 0

    def decay(self, epoch: int) -> float:
        """Return the decay of the moving average in an epoch (from 0)."""
        share = min(epoch / self.ramp_epochs, 1.0) if self.ramp_epochs else 1.0
        return self.decay_start + share * (self.decay_end - self.decay_start)
