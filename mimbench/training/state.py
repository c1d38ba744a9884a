"""Where a run stands: what its states on disk hold, and what a continuation takes up."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.amp.grad_scaler import GradScaler

from mimbench.system.errors import UserError
from mimbench.system.generators import seed_everything
from mimbench.system.seeds import derive_seed
from mimbench.training.identity import check_state
from mimbench.training.journal import Meter
from mimbench.training.learner import LAST, Learner, LoopConfig, RunContext
from mimbench.training.snapshots import (
    gather,
    random_state,
    read_state,
    restore_random_state,
    write_state,
)

logger = logging.getLogger(__name__)


class TrainingState:
    """A run's position, running means and best figure, beside what the learner itself holds."""

    def __init__(
        self, learner: Learner, config: LoopConfig, context: RunContext, *, steps_per_epoch: int
    ) -> None:
        """Begin where the folder's last state stands, else at the start.

        Args:
            learner: Model, optimizer and whatever else it keeps.
            config: Precision and seed matter here.
            context: The run's folder and process.
            steps_per_epoch: Optimizer steps of one epoch.
        """
        self.learner, self.context, self.steps_per_epoch = learner, context, steps_per_epoch
        self.device: torch.device = next(learner.model.parameters()).device
        self.scaler = GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.step = context.start_epoch * steps_per_epoch
        self.best: float | None = None
        self.window, self.whole_epoch = Meter(), Meter()
        if (context.checkpoints / LAST).exists():
            self._restore()
        else:
            seed_everything(derive_seed(config.seed, context.ranks.rank))
        steps = gather(self.step)
        if len(set(steps)) > 1:
            raise UserError(
                f"the processes stand at different steps ({', '.join(map(str, sorted(set(steps))))}): "
                f"{context.out} must be one folder that all machines see"
            )

    def improves(self, figures: Mapping[str, float], config: LoopConfig) -> bool:
        """Tell whether an epoch's figures are the best so far, and note it if they are."""
        name = config.best
        if name not in figures and name in self.learner.sometimes:
            return False
        if name not in figures:
            raise UserError(f"best: '{name}' is no figure of this run; it has {', '.join(figures)}")
        sign = 1 if config.best_is == "largest" else -1
        if self.best is not None and sign * figures[name] <= sign * self.best:
            return False
        self.best = figures[name]
        return True

    def write(self, path: Path) -> None:
        """Write a state from which the run continues exactly; every process must call this."""
        own = {
            "random": random_state(self.device),
            "window": self.window.state(),
            "whole_epoch": self.whole_epoch.state(),
        }
        processes = gather(own)
        if self.context.ranks.main:
            state = {
                "digest": self.context.digest,
                "config": self.context.config,
                "step": self.step,
                "epoch": self.step // self.steps_per_epoch,
                "best": self.best,
                "model": self.learner.model.state_dict(),
                "optimizer": self.learner.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "learner": self.learner.state(),
                "processes": processes,
            }
            write_state(path, state)
        # a process that left now would have the launcher end this one in the middle of its writing
        gather(None)

    def _restore(self) -> None:
        ranks = self.context.ranks
        state = read_state(self.context.checkpoints / LAST)
        check_state(self.context.out, state["digest"], self.context.digest)
        self.learner.model.load_state_dict(state["model"])
        self.learner.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.learner.restore(state["learner"])
        self.step, self.best = state["step"], state["best"]
        processes = state["processes"]
        if len(processes) == ranks.world:
            own = processes[ranks.rank]
            restore_random_state(own["random"], self.device)
            self.window.restore(own["window"], self.device)
            self.whole_epoch.restore(own["whole_epoch"], self.device)
        else:
            logger.warning(
                "resuming with %d processes a run of %d: same data and schedule, "
                "other random numbers in the model",
                ranks.world,
                len(processes),
            )
        logger.info("resuming after optimizer step %d", self.step)
