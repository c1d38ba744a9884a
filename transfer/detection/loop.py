"""detectron2's AMP trainer with accumulation: the step that every training takes."""

import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.engine import AMPTrainer
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mimbench.system.runtime import Precision, autocast
from transfer.detection.pictures import PictureSeeds


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
        self.micro_steps = micro_steps
        self.seeds = None if seed is None else PictureSeeds(model, seed)
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
            if self.seeds is not None:
                self.seeds(batch, self.device)
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
