"""Linear heads over frozen features: a grid of feature choices and learning rates, trained at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Self

from mimbench.features.bank import PARTS, Choice, join
from mimbench.features.protocol import FrozenConfig
from mimbench.system.errors import UserError
from mimbench.system.runtime import all_reduce_mean
from mimbench.training.optim import Lars, scaled_lr
from transfer.classification.training import Crop

MOMENTUM = 0.1
SMALL = 384
"""Width of ViT-S."""


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choices: tuple[Choice, ...] = ("cls",)
    small_choices: tuple[Choice, ...] = ()
    """Instead of `choices` for encoders no wider than ViT-S, where a protocol tells sizes apart."""
    learning_rates: tuple[float, ...] = (0.1,)
    """Base rates, for 256 images; each with each feature choice is one head."""
    batch_norm: bool = True
    norm_batch: int = 512
    """Images that batch norm takes its statistics over."""
    optimiser: Literal["lars", "sgd"] = "lars"
    batch: int = 16384
    epochs: int = 90
    warmup: float = 10
    anneal: Literal["step", "epoch"] = "step"
    """When the cosine moves on: DINO's probe keeps one rate for a whole epoch."""
    crop: Crop = field(default_factory=lambda: Crop(kind="byol"))
    report: Literal["last", "best"] = "last"
    """Which epoch `top1` is of; of several heads it is the best one on val."""
    eval_every: int = 1
    """Epochs between two looks at val."""
    holdout: float = 0.0
    """Share of the training images that chooses the head and is not trained on; 0: val chooses."""

    def __post_init__(self) -> None:
        if not self.choices or not self.learning_rates:
            raise ValueError("choices and learning_rates each need at least one value")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} is not within 0 and 1")
        if self.holdout and self.report == "best":
            raise ValueError("holdout chooses the head of the last epoch: report must be last")
        super().__post_init__()

    def canonical(self) -> Self:
        """Return the same, looked at every epoch: where the last one is reported that moves nothing."""
        every = 1 if self.report == "last" else self.eval_every
        return replace(super().canonical(), eval_every=every)

    def for_width(self, width: int) -> Self:
        """Return the recipe for an encoder of this width."""
        if not self.small_choices or width > SMALL:
            return self
        return replace(self, choices=self.small_choices, small_choices=())

    @property
    def heads(self) -> list[tuple[Choice, float]]:
        """Every head's features and base learning rate."""
        return [(choice, lr) for choice in self.choices for lr in self.learning_rates]

    def nearby(self, notes: Mapping[str, Any]) -> dict[str, str]:
        """Return the metrics of the heads beside the reported one: they were trained with it."""
        best = self.report == "best"
        suffix = ", last epoch" if best else ""
        by_name = {head_name(*head): head for head in self.heads}
        choice, rate = by_name[notes["best_head" if best else "head"]]
        rates = sorted(self.learning_rates)
        place = rates.index(rate)
        beside = {f"{other} features": (other, rate) for other in self.choices if other != choice}
        if place > 0:
            beside["lower rate"] = (choice, rates[place - 1])
        if place < len(rates) - 1:
            beside["higher rate"] = (choice, rates[place + 1])
        found = {f"{n}{suffix}": f"{head_name(*head)}_top1_last" for n, head in beside.items()}
        return {**({"last epoch": "top1_last"} if best else {}), **found}

    @property
    def blocks(self) -> int:
        """How many last blocks the heads read."""
        return max(int(part[-1]) for choice in self.choices for part in PARTS[choice])


class StepNorm(nn.Module):
    """Batch norm without affine, whose running statistics do not depend on how a batch is divided.

    Each micro-batch is normalised by its own statistics; the running ones move once for each
    optimizer step, towards the mean over its micro-batches on all processes.
    """

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised features (b, d)."""
        if not self.training:
            return (x - self.mean) * (self.variance + self.eps).rsqrt()
        if len(x) < 2:
            raise UserError("batch norm needs at least 2 images at a time; raise norm_batch")
        variance, mean = torch.var_mean(x, dim=0, correction=0)
        unbiased = variance.detach() * (len(x) / (len(x) - 1))
        self.seen.append(torch.stack([mean.detach(), unbiased]))
        return (x - mean) * (variance + self.eps).rsqrt()

    def commit(self) -> None:
        """Move the running statistics; every process must call it after the same step."""
        mean, variance = all_reduce_mean(torch.stack(self.seen).mean(dim=0))
        self.seen = []
        self.mean.lerp_(mean, MOMENTUM)
        self.variance.lerp_(variance, MOMENTUM)


def head_name(choice: str, lr: float) -> str:
    """Return what a head is called in the metrics."""
    return f"{choice}_lr{lr:g}"


class Heads(nn.Module):
    """Linear classifiers of every feature choice and learning rate, in one product for each choice."""

    def __init__(self, config: Config, widths: dict[str, int], classes: int, seed: int) -> None:
        super().__init__()
        self.choices, self.rates, self.classes = config.choices, config.learning_rates, classes
        self.norms = nn.ModuleList()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for choice in config.choices:
            # the same start whatever other choices are trained beside it
            generator = torch.Generator().manual_seed(seed)
            self.norms.append(StepNorm(widths[choice]) if config.batch_norm else nn.Identity())
            first = torch.empty(classes, widths[choice]).normal_(0, 0.01, generator=generator)
            for _ in config.learning_rates:
                # heads of one choice differ in nothing but their learning rate
                self.weights.append(nn.Parameter(first.clone()))
                self.biases.append(nn.Parameter(torch.zeros(classes)))

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """Return logits (heads, b, classes)."""
        out = []
        count = len(self.rates)
        for i, choice in enumerate(self.choices):
            x: Tensor = self.norms[i](join(vectors, choice))
            at = slice(i * count, (i + 1) * count)
            logits = F.linear(
                x, torch.cat(list(self.weights[at])), torch.cat(list(self.biases[at]))
            )
            out.append(logits.view(len(x), count, self.classes).transpose(0, 1))
        return torch.cat(out)

    def end_step(self) -> None:
        """Take the batch statistics of the step that ended into the running ones."""
        for norm in self.norms:
            if isinstance(norm, StepNorm):
                norm.commit()

    def only(self, which: int, features: Tensor) -> Tensor:
        """Return the logits (b, classes) of one head on its joined features."""
        x: Tensor = self.norms[which // len(self.rates)](features)
        return F.linear(x, self.weights[which], self.biases[which])


def make_optimizer(heads: Heads, config: Config) -> Optimizer:
    """Return LARS or SGD with a group for each head."""
    groups: list[dict[str, Any]] = [
        {"params": [w, b], "lr_scale": scaled_lr(lr, config.batch)}
        for w, b, (_, lr) in zip(heads.weights, heads.biases, config.heads, strict=True)
    ]
    if config.optimiser == "lars":
        return Lars(groups, lr=1.0)  # pyright: ignore[reportArgumentType]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=0.0, fused=True)
