"""Optimisation rules that several recipes share: groups, layer decay, schedules, LARS, sizes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mimbench.model import Spec
from mimbench.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then half a cosine, as a function of the fractional epoch."""

    peak: float
    epochs: float
    warmup: float = 0.0
    floor: float = 0.0

    def __call__(self, epoch: float) -> float:
        """Return the learning rate at a fractional epoch."""
        if epoch < self.warmup:
            return self.peak * epoch / self.warmup
        progress = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-12)
        return self.floor + (self.peak - self.floor) * 0.5 * (
            1 + math.cos(math.pi * min(progress, 1.0))
        )


def scaled_lr(base: float, batch: int) -> float:
    """Return the linear scaling rule's learning rate: base x batch / 256."""
    return base * batch / 256


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """An effective batch as this many images per process, micro-step and optimizer step."""

    per_process: int
    micro_steps: int


def plan_batch(effective: int, *, world: int, at_most: int) -> BatchPlan:
    """Return micro-batches that multiply to exactly the effective batch on `world` processes.

    Args:
        effective: Images per optimizer step, over all processes.
        world: Number of processes.
        at_most: Images that fit into one process at a time.
    """
    if effective % world:
        raise UserError(
            f"an effective batch of {effective} cannot be split evenly over {world} processes; "
            f"use a number of processes that divides it"
        )
    share = effective // world
    steps = next(s for s in range(1, share + 1) if share % s == 0 and share // s <= max(1, at_most))
    return BatchPlan(per_process=share // steps, micro_steps=steps)


def no_decay(name: str, parameter: Tensor) -> bool:
    """Tell whether MAE's fine-tuning recipe exempts a parameter from weight decay."""
    tables = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
    return parameter.ndim == 1 or name.rpartition(".")[2] in tables


def layer_decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    spec: Spec,
    decay: float,
    weight_decay: float,
    joined: int = 1,
) -> Iterator[dict[str, object]]:
    """Yield optimizer groups (params, names, lr_scale, weight_decay), one for each level and decay.

    Args:
        parameters: The network's, by canonical name; what is new has the full rate.
        spec: Says which level a parameter is of.
        decay: Factor from one level to the one below.
        weight_decay: Of all but one-dimensional tensors, tokens and tables.
        joined: Consecutive blocks that count as one level (ConvNeXt: 3).
    """
    top = joined_level(spec.layers - 1, spec.layers, joined)
    groups: dict[tuple[int, float], dict[str, list[object]]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            wd = 0.0 if no_decay(name, parameter) else weight_decay
            level = joined_level(spec.layer_of(name), spec.layers, joined)
            group = groups.setdefault((level, wd), {"params": [], "names": []})
            group["params"].append(parameter)
            group["names"].append(name)
    for (level, wd), group in sorted(groups.items(), key=lambda item: item[0]):
        yield {**group, "lr_scale": decay ** (top - level), "weight_decay": wd}


def joined_level(level: int, layers: int, joined: int) -> int:
    """Return a level where `joined` consecutive blocks count as one; embeddings and head stay alone."""
    last = 1 + (layers - 3) // joined
    return 0 if level == 0 else last + 1 if level >= layers - 1 else 1 + (level - 1) // joined


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set each group's learning rate to `lr` times the group's `lr_scale` (1 if it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Lars(Optimizer):
    """LARS as MAE's linear probe uses it: trust ratio and weight decay only for matrices."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step; a closure is not supported."""
        if closure is not None:
            raise ValueError("this optimizer takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: nn.Parameter, group: dict[str, float]) -> None:
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            size, step = parameter.norm(), update.norm()
            ratio = torch.where(
                (size > 0) & (step > 0), group["trust"] * size / step, torch.ones_like(size)
            )
            update = update * ratio
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.mul_(group["momentum"]).add_(update)
        parameter.add_(buffer, alpha=-group["lr"])
