"""The one training loop: pretraining, probing and fine-tuning differ only in what a step is.

A `Learner` says what is trained and what a step's loss is; `fit` does the rest: batches, ranks,
precision, accumulation, clipping, schedule, record, checkpoints, resumption, preemption.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mimbench.system.errors import UserError
from mimbench.system.runtime import autocast
from mimbench.training.batches import (
    Batch,
    BrokenImages,
    Samples,
    StepSampler,
    epoch_length,
    loader,
    to_device,
)
from mimbench.training.journal import Record
from mimbench.training.learner import BEST, FAILED, LAST, Learner, LoopConfig, RunContext, StepInfo
from mimbench.training.optim import plan_batch, set_lr
from mimbench.training.snapshots import duplicate
from mimbench.training.state import TrainingState
from mimbench.training.watch import LossWatch, Preempted, StopSignals

__all__ = ["Learner", "LoopConfig", "Preempted", "RunContext", "StepInfo", "fit"]

logger = logging.getLogger(__name__)

SMALLEST_SCALE = 2.0**-14
"""Of fp16's loss; each overflow halves it, and below this every gradient has long been zero."""


def fit(learner: Learner, samples: Samples, config: LoopConfig, context: RunContext) -> StepInfo:
    """Train to the end of the schedule, from wherever the folder's last state stands.

    Raises:
        Preempted: SIGTERM or SIGUSR1 came; the state is saved, the process's exit code is 75.
        UserError: The loss is not finite, too many images are broken, or the folder holds the run
            of another configuration.
    """
    if epoch_length(len(samples), config.repeats) < config.batch:
        raise UserError(
            f"{len(samples)} samples do not fill one batch of {config.batch}; "
            "use more data or a smaller batch"
        )
    return _Run(learner, samples, config, context).go()


class _Run:
    """One call of `fit`."""

    def __init__(
        self, learner: Learner, samples: Samples, config: LoopConfig, context: RunContext
    ) -> None:
        self.learner, self.samples, self.config, self.context = learner, samples, config, context
        self.ranks = context.ranks
        self.plan = plan_batch(
            config.batch, world=self.ranks.world, at_most=context.machine.max_batch
        )
        self.per_epoch = epoch_length(len(samples), config.repeats) // config.batch
        whole = config.epochs * self.per_epoch
        self.total = min(whole, config.steps or whole)
        self.now = TrainingState(learner, config, context, steps_per_epoch=self.per_epoch)
        self.device, self.scaler = self.now.device, self.now.scaler
        self.faults = BrokenImages(config.max_broken, len(samples))
        self.watch = LossWatch(learner.optimizer, self.device, self.ranks)
        self.trained = [p for g in learner.optimizer.param_groups for p in g["params"]]
        self.record: Record | None = None
        self.model = self._wrap()

    def at(self, micro: int = 0) -> StepInfo:
        """Return where the run stands."""
        share = self.plan.per_process * self.plan.micro_steps
        return StepInfo(
            step=self.now.step,
            steps_per_epoch=self.per_epoch,
            epochs=self.config.epochs,
            batch=self.config.batch,
            first=self.ranks.rank * share + micro * self.plan.per_process,
        )

    def go(self) -> StepInfo:
        """Run to the end."""
        if self.now.step >= self.total and not self._unscored():
            return self.at()
        if self.ranks.main:
            self.record = Record(
                self.context, self.at(), total=self.total, tensorboard=self.config.tensorboard
            )
        try:
            with StopSignals(self.ranks) as signals:
                self._train(signals)
        finally:
            if self.record is not None:
                self.record.close(finished=self.now.step >= self.total)
        return self.at()

    def _train(self, signals: StopSignals) -> None:
        batches = self._batches()
        fresh = True
        if self._unscored():
            self._keep()
        while self.now.step < self.total:
            if fresh or self.now.step % self.per_epoch == 0:
                fresh = False
                self.model.train()
                self.learner.begin_epoch(self.at())
            self._update(batches)
            self._look()
            self._keep()
            if signals.agreed() and self.now.step < self.total:
                self._save()
                logger.warning(
                    "stopped by a signal: saved after step %d; run the same command to continue",
                    self.now.step,
                )
                raise Preempted

    def _update(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step."""
        optimizer, micro_steps = self.learner.optimizer, self.plan.micro_steps
        set_lr(optimizer, self.learner.rate(self.at()))
        optimizer.zero_grad(set_to_none=True)
        for micro in range(micro_steps):
            batch = next(batches)
            with self._no_reduce(more=micro < micro_steps - 1):
                with autocast(self.device, self.config.precision):
                    figures = self.learner.loss(self.model, batch, self.at(micro))
                self.watch.loss(figures["loss"], self.now.step, batch.indices)
                loss = figures["loss"] / micro_steps
                if self.scaler.is_enabled():
                    loss = self.scaler.scale(loss + self.watch.poison())
                loss.backward()
            self.now.window.add(figures)
            self.now.whole_epoch.add(figures)
        self._descend()
        self.now.step += 1
        if self.record is not None:
            self.record.count()
        self.learner.after_update(self.at())

    def _descend(self) -> None:
        optimizer = self.learner.optimizer
        if self.scaler.is_enabled():
            self.scaler.unscale_(optimizer)
        limit = self.config.clip_grad
        norm = torch.nn.utils.clip_grad_norm_(
            self.trained, math.inf if limit is None else limit, foreach=True
        )
        self.norm = norm
        self.learner.before_update(self.at())
        if self.scaler.is_enabled():
            # an overflow only lowers the scale; a bad loss must stop all further steps
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            self.watch.gradient(norm, self.now.step)
            self.watch.guard()
            if self.watch.always:
                self._check()
            optimizer.step()

    def _look(self) -> None:
        """Read the figures when they are due: the one place where the host waits for the device."""
        if self.now.step % self.config.log_every and self.now.step < self.total:
            return
        self._check()
        figures = self.now.window.means()
        self.now.window.reset()
        if self.record is None:
            return
        figures |= {"gradient_norm": self.norm.item(), "broken_images": len(self.faults.found)}
        lr = self.learner.optimizer.param_groups[-1]["lr"]
        self.record.show(self.at(), figures, lr, self.device)

    def _check(self) -> None:
        """Stop the run, saved, if a loss or gradient was not finite, or fp16 fits none."""
        fault = self.watch.fault()
        lost = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
        if fault is None and not lost:
            return
        path = self.context.checkpoints / FAILED
        self.now.write(path)
        if fault is None:
            raise UserError(
                f"gradients overflow in fp16 at optimizer step {self.now.step} however far the loss is "
                f"scaled down; the weights are in {path}. Use bf16 or fp32, or a lower learning rate"
            )
        step, what, indices = fault
        shown = "\n".join(f"  {self.samples.name(i)}" for i in indices)
        raise UserError(
            f"the {what} is not finite at optimizer step {step} (epoch "
            f"{step / self.per_epoch:.3f}); the weights before that step are in {path}. "
            f"Lower the learning rate, or look at the images of its batch:\n{shown}"
        )

    def _keep(self) -> None:
        """Save what is due after a step."""
        config, step = self.config, self.now.step
        ended, last = step % self.per_epoch == 0, step == self.total
        if self._unscored():
            # scoring takes long and may fail: the epoch is safe before it
            self._save()
        better = ended and self._end_epoch()
        if not (ended or last or (config.save_every and step % config.save_every == 0)):
            return
        epoch, names = step // self.per_epoch, [BEST] if better else []
        if ended and config.keep_every > 0 and epoch % config.keep_every == 0:
            names.append(f"epoch-{epoch:04d}.pt")
        self._save(names, last=last)

    def _save(self, further: Sequence[str] = (), *, last: bool = False) -> None:
        """Write last.pt, and before it the states and exports that stay.

        A run that is killed in between takes its last steps again and so writes all of them.
        """
        self._check()
        folder = self.context.checkpoints
        if self.ranks.main:
            for name in [*further, *([LAST] if last else [])]:
                if name != BEST:
                    self.learner.saved(folder / name, self.at())
        names = [*further, LAST]
        self.now.write(folder / names[0])
        if self.ranks.main:
            for name in names[1:]:
                duplicate(folder / names[0], folder / name)

    def _unscored(self) -> bool:
        ended = self.now.step > 0 and self.now.step % self.per_epoch == 0
        return ended and self.learner.unscored(self.at())

    def _end_epoch(self) -> bool:
        """Close an epoch; tell whether it was the best so far."""
        self._check()
        own = self.learner.end_epoch(self.at())
        figures = self.now.whole_epoch.means() | own
        self.now.whole_epoch.reset()
        if own and self.record is not None:
            self.record.curve.write(self.now.step, {"epoch": self.at().fraction, **own})
        return self.now.improves(figures, self.config)

    def _wrap(self) -> nn.Module:
        model = self.learner.model
        if self.context.machine.compile:
            model.compile()
        if self.ranks.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def _no_reduce(self, *, more: bool) -> AbstractContextManager[object]:
        if more and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _batches(self) -> Iterator[Batch]:
        sampler = StepSampler(
            size=len(self.samples),
            batch=self.config.batch,
            plan=self.plan,
            ranks=self.ranks,
            seed=self.config.seed,
            start=self.now.step,
            stop=self.total,
            repeats=self.config.repeats,
        )
        workers, pin = self.context.machine.workers, self.device.type == "cuda"
        for batch in loader(self.samples, sampler, workers=workers, pin=pin):
            self.faults.add(batch.faults)
            yield batch._replace(data=to_device(batch.data, self.device))
