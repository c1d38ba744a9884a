"""mmengine's loop and Runner: one iteration is one effective batch, states are plain data."""

from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from typing_extensions import override

from mimbench.system.files import value_digest
from mimbench.system.runtime import Ranks
from transfer.segmentation.framework import LOOPS


@LOOPS.register_module()
class EffectiveBatchLoop(IterBasedTrainLoop):
    """mmengine's loop with one iteration = one optimiser step, however many micro-batches it takes.

    Args:
        runner: The runner.
        dataloader: Gives this process's whole share of an effective batch.
        micro_steps: Parts that the share is computed in; equal to the wrapper's accumulation.
        options: What mmengine's loop takes besides.
    """

    def __init__(self, runner: Runner, dataloader: Any, *, micro_steps: int, **options: Any):
        super().__init__(runner, dataloader, **options)
        self.micro_steps = micro_steps

    def run(self) -> nn.Module:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Train; the wrapper counts micro-batches, the loop optimiser steps."""
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, self._iter * self.micro_steps, self._max_iters * self.micro_steps
        )
        super().run()
        return self.runner.model

    @override
    def _decide_current_val_interval(self) -> None:
        """Leave the score after the last step to the run's own test."""
        super()._decide_current_val_interval()
        if self._iter == self._max_iters:
            self.val_begin = self._max_iters + 1

    def start_at(self, step: int) -> None:
        """Begin after this many optimiser steps; the sampler skips what they used."""
        self._iter = step

    def run_iter(self, data_batch: Any) -> None:
        """Take one optimiser step."""
        self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        losses: list[dict[str, torch.Tensor]] = []
        for part in split_batch(data_batch, self.micro_steps):
            losses.append(
                self.runner.model.train_step(part, optim_wrapper=self.runner.optim_wrapper)
            )
        outputs = {
            name: torch.stack([loss[name].detach() for loss in losses]).mean() for name in losses[0]
        }
        self.runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1


def split_batch(batch: dict[str, list[Any]], parts: int) -> list[dict[str, list[Any]]]:
    """Return a collated batch in equal parts."""
    size = len(batch["inputs"]) // parts
    return [
        {name: items[i * size : (i + 1) * size] for name, items in batch.items()}
        for i in range(parts)
    ]


class TrainedParts(NamedTuple):
    """What changes while a Runner trains."""

    model: nn.Module
    optimizer: OptimWrapper
    schedules: list[_ParamScheduler]


def trained_parts(runner: Runner) -> TrainedParts:
    """Return a training Runner's model (unwrapped), optimiser wrapper and schedules."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    optimizer, schedules = runner.optim_wrapper, runner.param_schedulers
    assert isinstance(optimizer, OptimWrapper)
    assert isinstance(schedules, list)
    return TrainedParts(cast(nn.Module, model), optimizer, schedules)


def synchronises(device: torch.device, world: int) -> bool:
    """Tell whether batch norm sees the images of all processes: torch can do that on GPUs only."""
    return world > 1 and device.type == "cuda"


def settle_batch_norm(model: nn.Module, *, synchronised: bool) -> nn.Module:
    """Return the model with the recipe's synchronised batch norm, or plain where there is no peer."""
    return model if synchronised else revert_sync_batchnorm(model)


class PlainRunner(Runner):
    """mmengine's Runner that resumes from plain data, and runs on the device that was asked for."""

    def __init__(
        self, *, chosen: torch.device, state: dict[str, Any] | None = None, **options: Any
    ):
        self.chosen, self.state = chosen, state
        super().__init__(**options)

    @override
    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to its device; synchronise gradients only where it trains."""
        world = get_world_size() if self.distributed else 1
        model = settle_batch_norm(
            model.to(self.chosen), synchronised=synchronises(self.chosen, world)
        )
        if not self.distributed or self.cfg.get("train_cfg") is None:
            return model
        cuda = self.chosen.type == "cuda"
        return MMDistributedDataParallel(
            module=model,
            device_ids=[self.chosen.index] if cuda else None,
            # local batch norm: all processes follow rank 0's running statistics, the saved ones
            broadcast_buffers=not cuda,
        )

    def _init_model_weights(self) -> None:
        """Leave the weights alone: they were filled, strictly, before the runner was built."""

    def load_or_resume(self) -> None:
        """Continue from the saved state, if there is one."""
        if self.state is None or self._has_loaded:
            return
        parts = trained_parts(self)
        parts.model.load_state_dict(self.state["model"])
        parts.optimizer.load_state_dict(self.state["optimizer"])
        for schedule, state in zip(parts.schedules, self.state["schedules"], strict=True):
            schedule.load_state_dict(state)
        cast(EffectiveBatchLoop, self.train_loop).start_at(self.state["step"])
        self._has_loaded = True


def runner_options(cfg: Config, ranks: Ranks, out: Path, label: str) -> dict[str, Any]:
    """Return what every Runner gets: no hook of its own that prints, pickles or draws."""
    return {
        "work_dir": str(out / "mmengine"),
        "launcher": "pytorch" if ranks.world > 1 else "none",
        "default_scope": cfg.default_scope,
        "default_hooks": {"logger": None, "checkpoint": None, "timer": None, "sampler_seed": None},
        "env_cfg": cfg.env_cfg,
        "randomness": cfg.randomness,
        "log_level": "WARNING",
        "experiment_name": f"{label}-{value_digest([str(out), label])[:8]}",
    }
