"""Everything that may move an attentive probe's number."""

from dataclasses import dataclass, field
from typing import Literal

from mimbench.features.protocol import ImageConfig
from transfer.classification.pooling import Head
from transfer.classification.tokens import Where, Which
from transfer.classification.training import Crop


@dataclass(frozen=True, kw_only=True)
class Config(ImageConfig):
    """Everything that may move the number, beside how images are read."""

    probe: Head = "ep"
    queries: int = 32
    """Of `ep`."""
    tokens: Which = "auto"
    """auto: the class token too where the pretraining objective is defined on it."""
    norm: Where = "auto"
    """auto: before the final norm, but for families published after it."""
    learning_rates: tuple[float, ...] = (0.1,)
    """Base rates, for 256 images; each with each weight decay is one head."""
    weight_decays: tuple[float, ...] = (0.0,)
    optimiser: Literal["lars", "adamw"] = "lars"
    batch: int = 4096
    norm_batch: int = 512
    """Images that batch norm takes its statistics over, where the head has one."""
    epochs: int = 90
    warmup: float = 10
    """Epochs, or iterations where these are given."""
    iterations: int | None = None
    """Optimiser steps in all; `epochs` is then what they come to."""
    crop: Crop | None = field(default_factory=lambda: Crop(kind="byol"))
    """null: train on the tokens of the centre crop, computed once."""
    holdout: float = 0.02
    """Share of the training images that chooses the epoch and the head, and is not trained on."""
    storage: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Of tokens on disk: those that are scored, and without a crop those that are trained on."""

    def __post_init__(self) -> None:
        if not self.learning_rates or not self.weight_decays:
            raise ValueError("learning_rates and weight_decays each need at least one value")
        if not 0 < self.holdout < 1:
            raise ValueError(
                f"holdout {self.holdout} is not between 0 and 1: part of train chooses the epoch"
            )
        super().__post_init__()

    @property
    def heads(self) -> list[tuple[float, float]]:
        """Every head's base learning rate and weight decay."""
        return [(lr, wd) for lr in self.learning_rates for wd in self.weight_decays]

    @property
    def at_most(self) -> int:
        """Images that one micro-batch may have."""
        return self.norm_batch if self.probe in ("ep", "aim") else self.machine.max_batch
