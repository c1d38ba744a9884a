"""Training: detectron2's AMP trainer with accumulation, its hooks, and state that resumes exactly."""

import logging
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, hooks
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision, Ranks, autocast
from mimbench.training.watch import StopSignals
from transfer.detection.hooks import Bar, Checkpoints, Curve, Leave
from transfer.detection.order import seed_model

logger = logging.getLogger(__name__)

WRITE_EVERY = 20


class Accumulator(AMPTrainer):
    """detectron2's AMP trainer over several micro-batches for each optimizer step.

    The gradient is the mean over micro-batches, as data parallelism takes the mean over processes:
    n processes with one micro-batch and one process with n of them take the same step.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        optimizer: Optimizer,
        *,
        micro_steps: int,
        precision: Precision,
        seed: int | None,
    ) -> None:
        self.device = next(model.parameters()).device
        scaler = GradScaler(self.device.type, enabled=precision == "fp16")
        super().__init__(model, loader, optimizer, grad_scaler=scaler)
        self.micro_steps, self.seed = micro_steps, seed
        self.mixed: Precision = precision

    def run_step(self) -> None:
        """Take one optimizer step over `micro_steps` batches of the loader."""
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        waited = 0.0
        for micro in range(self.micro_steps):
            start = time.perf_counter()
            batch = next(self._data_loader_iter)
            waited += time.perf_counter() - start
            if self.seed is not None:
                seed_model(self.seed, batch)
            for name, loss in self._micro_step(batch, last=micro == self.micro_steps - 1).items():
                totals[name] = totals.get(name, 0.0) + loss.detach() / self.micro_steps
        self.after_backward()
        self._write_metrics(totals, waited)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _micro_step(self, batch: Any, *, last: bool) -> Mapping[str, Tensor]:
        alone = last or not isinstance(self.model, DistributedDataParallel)
        with nullcontext() if alone else self.model.no_sync():
            with autocast(self.device, self.mixed):
                losses = self.model(batch)
                total = sum(losses.values(), torch.zeros((), device=self.device)) / self.micro_steps
            self.grad_scaler.scale(total).backward()
        return losses


def save_period(steps: int) -> int:
    """Return the steps between saved states: the official 5000, more often in a short run."""
    return max(1, min(5000, steps // 10))


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a training goes, beside the step itself."""

    steps: int
    schedule: ParamScheduler
    """Multiplier of the learning rate over the run."""
    eval_every: int
    evaluate: Callable[[], Mapping[str, float]]
    """Scores the model as it is, on every process."""
    begin: Callable[[int], None]
    """Told the step from which training goes on, before the first batch is drawn."""


def fit(trainer: Accumulator, course: Course, out: Path, ranks: Ranks) -> None:
    """Train to the end of the course, from the newest state in `out` or from the start."""
    checkpoints = Checkpoints(trainer.model, str(out / "checkpoints"), trainer=trainer)
    main = checkpoints.save_to_disk
    saver = hooks.PeriodicCheckpointer(checkpoints, save_period(course.steps), max_to_keep=1)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=course.schedule),
            saver if main else None,
            hooks.EvalHook(course.eval_every, course.evaluate, eval_after_train=False),
        ]
    )
    start = trainer.iter + 1 if checkpoints.read_last() else 0
    if start >= course.steps:
        logger.info("training is finished already, after %d steps", start)
        return
    if start:
        logger.info("training goes on after step %d of %d", start, course.steps)
    course.begin(start)
    if main:
        curve = Curve(out / "metrics.jsonl", start)
        trainer.register_hooks([hooks.PeriodicWriter([curve], WRITE_EVERY), Bar()])
    with StopSignals(ranks) as signals, advice(trainer.device):
        trainer.register_hooks([Leave(checkpoints, signals)])
        trainer.train(start, course.steps)


@contextmanager
def advice(device: torch.device) -> Iterator[None]:
    """Turn what stops a training for lack of memory or sense into advice."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"{error}\nthe weights saved last are still sound; train with precision: bf16, or "
            "with a lower learning_rate"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        raise UserError(
            f"out of memory on {device} ({peak_memory(device)}): {str(error).splitlines()[0]}\n"
            "lower max_batch (the effective batch stays: more micro-steps make it up), pass "
            "--recompute, or set attention: fused or precision: bf16; "
            "then run again: training goes on from the last saved state"
        ) from error


def _lacks_memory(error: BaseException) -> bool:
    known = "DefaultCPUAllocator" in str(error) or "out of memory" in str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or known


def peak_memory(device: torch.device) -> str:
    """Return the measured peak of this process in words."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        whole = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"peak {peak:.1f} of {whole:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"peak {peak:.1f} GiB of resident memory"
