"""The one training loop: pretraining, probing and fine-tuning differ only in what a step is.

A `Learner` says what is trained and what a step's loss is; `fit` does the rest: batches, ranks,
precision, accumulation, clipping, schedule, record, checkpoints, resumption, preemption.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from mimbench.batches import Batch, Faults, Samples, StepSampler, derive_seed, loader, to_device
from mimbench.errors import UserError
from mimbench.journal import Journal, Meter, peak_memory
from mimbench.learner import BEST, FAILED, LAST, Learner, LoopConfig, Moment, Place
from mimbench.optim import plan_batch, set_lr
from mimbench.progress import Progress
from mimbench.runtime import autocast, seed_everything
from mimbench.snapshots import (
    duplicate,
    gather,
    random_state,
    read_state,
    restore_random_state,
    write_state,
)
from mimbench.watch import PREEMPTED, LossWatch, Preempted, StopSignals

__all__ = ["Learner", "LoopConfig", "Moment", "Place", "Preempted", "fit"]

logger = logging.getLogger(__name__)


def fit(learner: Learner, samples: Samples, config: LoopConfig, place: Place) -> Moment:
    """Train to the end of the schedule, from wherever the folder's last state stands.

    Raises:
        Preempted: SIGTERM or SIGUSR1 came; the state is saved, the process's exit code is 75.
        UserError: The loss is not finite, too many images are broken, or the folder holds the run
            of another configuration.
    """
    if len(samples) < config.batch:
        raise UserError(
            f"{len(samples)} samples do not fill one batch of {config.batch}; "
            "use more data or a smaller batch"
        )
    return _Run(learner, samples, config, place).go()


class _Run:
    """One call of `fit`."""

    def __init__(
        self, learner: Learner, samples: Samples, config: LoopConfig, place: Place
    ) -> None:
        self.learner, self.samples, self.config, self.place = learner, samples, config, place
        self.ranks = place.ranks
        self.device = next(learner.model.parameters()).device
        self.plan = plan_batch(
            config.batch, world=self.ranks.world, at_most=place.machine.max_batch
        )
        self.per_epoch = len(samples) // config.batch
        self.total = min(
            config.epochs * self.per_epoch, config.steps or config.epochs * self.per_epoch
        )
        self.step = place.start_epoch * self.per_epoch
        self.best: float | None = None
        self.window, self.whole_epoch = Meter(), Meter()
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.faults = Faults(config.max_broken, len(samples))
        self.watch = LossWatch(learner.optimizer, self.device, self.ranks)
        self.trained = [p for g in learner.optimizer.param_groups for p in g["params"]]
        self._restore()
        self.model = self._wrap()

    def at(self, micro: int = 0) -> Moment:
        """Return where the run stands."""
        share = self.plan.per_process * self.plan.micro_steps
        return Moment(
            step=self.step,
            steps_per_epoch=self.per_epoch,
            epochs=self.config.epochs,
            batch=self.config.batch,
            first=self.ranks.rank * share + micro * self.plan.per_process,
        )

    def go(self) -> Moment:
        """Run to the end."""
        if self.step >= self.total:
            if self.ranks.main:
                # a run that was killed between its last state and the exports has none
                self.learner.saved(self.place.checkpoints / LAST, self.at())
            return self.at()
        main, config = self.ranks.main, self.config
        self.bar = Progress(self.place.label, self.total, start=self.step) if main else None
        self.journal = (
            Journal(self.place.out, resumed_at=self.step, tensorboard=config.tensorboard)
            if main
            else None
        )
        self.logged_at, self.logged_step = time.monotonic(), self.step
        try:
            with StopSignals(self.ranks) as signals:
                self._train(signals)
        finally:
            if self.journal is not None:
                self.journal.close()
        if self.bar is not None:
            self.bar.close()
        return self.at()

    def _train(self, signals: StopSignals) -> None:
        batches = self._batches()
        fresh = True
        while self.step < self.total:
            if fresh or self.step % self.per_epoch == 0:
                fresh = False
                self.model.train()
                self.learner.begin_epoch(self.at())
            self._update(batches)
            self._look()
            self._keep()
            if signals.agreed() and self.step < self.total:
                self._save()
                logger.warning("told to leave: saved after step %d; run again to go on", self.step)
                raise Preempted(PREEMPTED)

    def _update(self, batches: Iterator[Batch]) -> None:
        """Take one optimizer step."""
        optimizer, micro_steps = self.learner.optimizer, self.plan.micro_steps
        set_lr(optimizer, self.learner.rate(self.at()))
        optimizer.zero_grad(set_to_none=True)
        for micro in range(micro_steps):
            batch = self._receive(next(batches))
            with self._no_reduce(more=micro < micro_steps - 1):
                with autocast(self.device, self.config.precision):
                    figures = self.learner.loss(self.model, batch, self.at(micro))
                self.watch.loss(figures["loss"], self.step, batch.indices)
                loss = figures["loss"] / micro_steps
                if self.scaler.is_enabled():
                    loss = self.scaler.scale(loss + self.watch.poison())
                loss.backward()
            self.window.add(figures)
            self.whole_epoch.add(figures)
        self._descend()
        self.step += 1
        if self.bar is not None:
            self.bar.step()
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
            self.watch.gradient(norm, self.step)
            self.watch.guard()
            if self.watch.always:
                self._check()
            optimizer.step()

    def _look(self) -> None:
        """Read the figures when they are due: the one place where the host waits for the device."""
        if self.step % self.config.log_every and self.step < self.total:
            return
        self._check()
        figures = self.window.means()
        self.window.reset()
        now = time.monotonic()
        images = (self.step - self.logged_step) * self.config.batch
        speed = {
            "images_per_second": images / max(now - self.logged_at, 1e-9),
            "memory_gib": peak_memory(self.device),
        }
        self.logged_at, self.logged_step = now, self.step
        if self.journal is None or self.bar is None:
            return
        figures |= {"gradient_norm": self.norm.item(), "broken_images": len(self.faults.found)}
        lr = self.learner.optimizer.param_groups[-1]["lr"]
        self.journal.write(self.step, {"epoch": self.at().fraction, **figures, "lr": lr, **speed})
        shown = {**figures, "img/s": speed["images_per_second"], "GiB": speed["memory_gib"]}
        del shown["broken_images"]
        self.bar.step(0, **shown)

    def _check(self) -> None:
        """Stop the run, saved, if a loss or gradient was not finite."""
        fault = self.watch.fault()
        if fault is None:
            return
        step, what, indices = fault
        path = self.place.checkpoints / FAILED
        self._write(path)
        shown = "\n".join(f"  {self.samples.name(i)}" for i in indices)
        raise UserError(
            f"the {what} is not finite at optimizer step {step} (epoch "
            f"{step / self.per_epoch:.3f}); the weights before that step are in {path}. "
            f"Lower the learning rate, or look at the images of its batch:\n{shown}"
        )

    def _keep(self) -> None:
        """Save what is due after a step."""
        config, ended = self.config, self.step % self.per_epoch == 0
        better = ended and self._end_epoch()
        last = self.step == self.total
        if not (ended or last or (config.save_every and self.step % config.save_every == 0)):
            return
        self._save()
        epoch = self.step // self.per_epoch
        kept = ended and config.keep_every > 0 and epoch % config.keep_every == 0
        if not self.ranks.main:
            return
        folder = self.place.checkpoints
        if better:
            duplicate(folder / LAST, folder / BEST)
        if kept:
            copy = folder / f"epoch-{epoch:04d}.pt"
            duplicate(folder / LAST, copy)
            self.learner.saved(copy, self.at())
        if last:
            self.learner.saved(folder / LAST, self.at())

    def _end_epoch(self) -> bool:
        """Close an epoch; tell whether it was the best so far."""
        self._check()
        own = self.learner.end_epoch(self.at())
        means = self.whole_epoch.means()
        self.whole_epoch.reset()
        if own and self.journal is not None:
            self.journal.write(self.step, {"epoch": self.at().fraction, **own})
        figures = means | own
        name = self.config.best
        if name not in figures:
            raise UserError(f"best: '{name}' is no figure of this run; it has {', '.join(figures)}")
        value = figures[name]
        sign = 1 if self.config.best_is == "largest" else -1
        if self.best is not None and sign * value <= sign * self.best:
            return False
        self.best = value
        return True

    def _save(self) -> None:
        self._check()
        self._write(self.place.checkpoints / LAST)

    def _write(self, path: Any) -> None:
        own = {
            "random": random_state(self.device),
            "window": self.window.state(),
            "whole_epoch": self.whole_epoch.state(),
        }
        processes = gather(own)
        if self.ranks.main:
            write_state(
                path,
                {
                    "digest": self.place.digest,
                    "step": self.step,
                    "best": self.best,
                    "model": self.learner.model.state_dict(),
                    "optimizer": self.learner.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "learner": self.learner.state(),
                    "processes": processes,
                },
            )

    def _restore(self) -> None:
        path = self.place.checkpoints / LAST
        if not path.exists():
            seed_everything(derive_seed(self.config.seed, self.ranks.rank))
            return
        state = read_state(path)
        if state["digest"] != self.place.digest:
            raise UserError(
                f"{self.place.out} holds a run of another configuration; "
                "choose another folder, or start afresh with --fresh"
            )
        self.learner.model.load_state_dict(state["model"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.learner.restore(state["learner"])
        self.step, self.best = state["step"], state["best"]
        processes = state["processes"]
        if len(processes) == self.ranks.world:
            own = processes[self.ranks.rank]
            restore_random_state(own["random"], self.device)
            self.window.restore(own["window"], self.device)
            self.whole_epoch.restore(own["whole_epoch"], self.device)
        else:
            logger.warning(
                "resuming with %d processes a run of %d: same data and schedule, "
                "other random numbers in the model",
                self.ranks.world,
                len(processes),
            )
        logger.info("resuming after step %d of %d", self.step, self.total)

    def _wrap(self) -> nn.Module:
        model = self.learner.model
        if self.place.machine.compile:
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
            start=self.step,
            stop=self.total,
        )
        workers, pin = self.place.machine.workers, self.device.type == "cuda"
        return iter(loader(self.samples, sampler, workers=workers, pin=pin))

    def _receive(self, batch: Batch) -> Batch:
        self.faults.add(batch.faults)
        return batch._replace(data=to_device(batch.data, self.device))
