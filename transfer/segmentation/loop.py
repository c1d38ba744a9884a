"""The training loop's parts in mmengine's registries: effective batches, exact resume, progress."""

import json
import logging
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mimbench.errors import UserError
from mimbench.files import atomic_path, value_digest, write_text
from mimbench.progress import Progress
from mimbench.runtime import Ranks
from transfer.segmentation.framework import (
    LOOPS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    LearningRateDecayOptimizerConstructor,
)

logger = logging.getLogger(__name__)

STATE_FILE = "state.pth"
SAVE_SECONDS = 600.0
"""Between saved states; a preemption signal saves at once."""
LOG_LINES = 1_000
"""Lines in metrics.jsonl for a whole run, about."""


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

    def run(self) -> nn.Module:
        """Train; the wrapper counts micro-batches, the loop optimiser steps."""
        self.runner.optim_wrapper.initialize_count_status(
            self.runner.model, self._iter * self.micro_steps, self._max_iters * self.micro_steps
        )
        super().run()
        return self.runner.model

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


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class EmbeddingAwareLayerDecay(LearningRateDecayOptimizerConstructor):
    """mmseg's layer decay, and what it means to do: no weight decay on tokens and tables.

    mmseg looks for 'pos_embed' and 'cls_token', but parameters are called 'backbone.pos_embed',
    so the published runs decay position tables, class tokens and relative bias tables. Registers
    and a norm before the blocks move to the lowest level here, beside the class token.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **options: Any) -> None:
        """Append the parameter groups."""
        groups: list[dict[str, Any]] = []
        super().add_params(groups, module, **options)
        lowest = self.paramwise_cfg["decay_rate"] ** (self.paramwise_cfg["num_layers"] + 1)
        sorted_groups: dict[tuple[float, float], dict[str, Any]] = {}
        for group in groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                scale = lowest if is_embedding(name) else group["lr_scale"]
                decay = 0.0 if is_exempt(name) else group["weight_decay"]
                new = sorted_groups.setdefault(
                    (scale, decay), {"weight_decay": decay, "params": [], "param_names": []}
                )
                new["lr_scale"], new["lr"] = scale, scale * self.base_lr
                new["group_name"] = f"scale_{scale:.6g}_decay_{decay:g}"
                new["params"].append(parameter)
                new["param_names"].append(name)
        params.extend(sorted_groups.values())


def is_embedding(name: str) -> bool:
    """Tell whether a parameter belongs before the first block."""
    return name.startswith(
        (
            "backbone.cls_token",
            "backbone.reg_token",
            "backbone.pos_embed",
            "backbone.norm_pre",
            "backbone.patch_embed",
        )
    )


def is_exempt(name: str) -> bool:
    """Tell whether a parameter is a token or a table, which weight decay should leave alone."""
    return name.endswith(("cls_token", "reg_token", "pos_embed", "relative_position_bias_table"))


class PlainRunner(Runner):
    """mmengine's Runner that resumes from plain data, and runs on the device that was asked for."""

    def __init__(
        self, *, chosen: torch.device, state: dict[str, Any] | None = None, **options: Any
    ):
        self.chosen, self.state = chosen, state
        super().__init__(**options)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to its device; synchronise gradients only where it trains."""
        model = model.to(self.chosen)
        if not self.distributed or self.chosen.type != "cuda":
            model = revert_sync_batchnorm(model)
        if not self.distributed or self.cfg.get("train_cfg") is None:
            return model
        return MMDistributedDataParallel(
            module=model,
            device_ids=[self.chosen.index] if self.chosen.type == "cuda" else None,
            broadcast_buffers=False,
        )

    def _init_model_weights(self) -> None:
        """Leave the weights alone: they were filled, strictly, before the runner was built."""

    def load_or_resume(self) -> None:
        """Continue from the saved state, if there is one."""
        if self.state is None or self._has_loaded:
            return
        model = self.model.module if self.distributed else self.model
        model.load_state_dict(self.state["model"])
        self.optim_wrapper.load_state_dict(self.state["optimizer"])
        for scheduler, state in zip(self.param_schedulers, self.state["schedules"], strict=True):
            scheduler.load_state_dict(state)
        self.train_loop._iter = self.state["step"]
        self._has_loaded = True


class Interrupted(SystemExit):
    """A preemption signal came; the state is saved."""


class StateHook(Hook):
    """Saves what a run needs to continue exactly, as plain data that loads without unpickling.

    mmengine's own checkpoints hold HistoryBuffer objects, which torch refuses to load safely.

    Args:
        file: Where the state goes.
        digest: Identity of configuration and weights; another run's state is never continued.
        every: Also save every so many steps (for tests); 0 for by time only.
    """

    priority = "LOWEST"

    def __init__(self, file: Path, digest: str, every: int = 0):
        self.file, self.digest, self.every = file, digest, every
        self.saved = time.monotonic()
        self.stop: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Listen for preemption signals."""
        if get_rank() == 0:
            self.previous = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)}
            for number in self.previous:
                signal.signal(number, self._request)

    def _request(self, number: int, frame: object) -> None:
        self.stop = number

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Save when it is time or when a signal came; after a signal, leave."""
        if get_rank() != 0:
            return
        step = batch_idx + 1
        due = time.monotonic() - self.saved >= SAVE_SECONDS
        if due or self.stop is not None or (self.every and step % self.every == 0):
            self.save(runner, step)
        if self.stop is not None:
            logger.warning("signal %d: state saved at step %d; run again to go on", self.stop, step)
            raise Interrupted(128 + self.stop)

    def after_train(self, runner: Runner) -> None:
        """Restore the signals."""
        if get_rank() == 0:
            for number, handler in self.previous.items():
                signal.signal(number, handler)

    def save(self, runner: Runner, step: int) -> None:
        """Write the state atomically."""
        model = runner.model.module if runner.distributed else runner.model
        schedulers = runner.param_schedulers
        assert isinstance(schedulers, list)
        value = {
            "digest": self.digest,
            "step": step,
            "model": model.state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedules": [plain(scheduler.state_dict()) for scheduler in schedulers],
        }
        with atomic_path(self.file) as part:
            torch.save(value, part)
        self.saved = time.monotonic()


def plain(value: Any) -> Any:
    """Return the numbers, texts and lists of a state; NumPy scalars become Python's."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def read_state(file: Path, digest: str) -> dict[str, Any] | None:
    """Return the saved state of this very run; None if there is none, an error if it is another's."""
    if not file.is_file():
        return None
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["digest"] != digest:
        raise UserError(
            f"{file.parent} holds an unfinished run of another configuration or checkpoint; "
            "choose another folder or delete it"
        )
    return state


class StepSeedHook(Hook):
    """Seeds dropout and drop path from seed, step and rank, so that no generator state is kept."""

    def __init__(self, seed: int):
        self.seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch for this step."""
        words = np.random.SeedSequence([self.seed, batch_idx, get_rank()]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


class CurveHook(Hook):
    """Shows progress with time left, writes metrics.jsonl, and stops when the loss is no number.

    Args:
        file: The curve, one JSON object for each logged step.
        total: Optimiser steps of the whole run.
        start: Steps already done.
    """

    def __init__(self, file: Path, total: int, start: int):
        self.file, self.total, self.start = file, total, start
        self.every = max(1, min(50, total // LOG_LINES or 1))
        self.stream: TextIO | None = None

    def before_train(self, runner: Runner) -> None:
        """Open the curve; lines after the resumed step are dropped."""
        if get_rank() == 0:
            write_text(self.file, "".join(kept_lines(self.file, self.start)))
            self.stream = self.file.open("a", encoding="utf-8")
            self.progress = Progress("train", self.total, start=self.start)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Count the step; every so often read the loss."""
        step = batch_idx + 1
        figures: dict[str, float] = {}
        if step % self.every == 0 or step == self.total:
            figures = {name: float(value) for name, value in outputs.items()}
            self._stop_if_lost(step, figures["loss"])
        if self.stream is None:
            return
        if figures:
            rates = [group["lr"] for group in runner.optim_wrapper.param_groups]
            self._write({"step": step, **figures, "lr": max(rates)})
            self.progress.step(loss=figures["loss"], lr=max(rates))
        else:
            self.progress.step()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put scores on the way into the curve."""
        if self.stream is not None and metrics:
            self._write({"step": runner.iter, **{k: float(v) for k, v in metrics.items()}})

    def after_train(self, runner: Runner) -> None:
        """Close the curve."""
        if self.stream is not None:
            self.progress.close()
            self.stream.close()

    def _write(self, line: dict[str, float | int]) -> None:
        assert self.stream is not None
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()

    def _stop_if_lost(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; try a lower learning rate (lr=...), "
                "or precision=bf16 instead of fp16"
            )


def kept_lines(file: Path, start: int) -> Sequence[str]:
    """Return the lines of a curve up to a step."""
    if not start or not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]


class TestProgressHook(Hook):
    """Shows how far a test is."""

    def __init__(self, label: str):
        self.label = label

    def before_test_epoch(self, runner: Runner) -> None:
        """Start counting this process's pictures."""
        self.progress = (
            Progress(self.label, len(runner.test_dataloader)) if not get_rank() else None
        )

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Count one picture."""
        if self.progress:
            self.progress.step()

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Show the last line."""
        if self.progress:
            self.progress.close()


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
