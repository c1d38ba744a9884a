"""What a step of each arm takes, over the reference's: processor time, in turns."""

import statistics
import time
from pathlib import Path

import torch
from torch.utils.data import default_collate

from mimbench.system.generators import seed_everything
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from pretrain.compare.design import Design
from pretrain.objectives.learner import Pretraining
from pretrain.sources.images import EvenSubset, open_source
from pretrain.train import build_learner, learner_samples

ROUNDS = 9
"""Rounds in which every arm takes one step; the first is thrown away."""


def over_reference(design: Design, data: Path) -> dict[str, float]:
    """Return each arm's time over the reference's: the median of ratios within rounds.

    The clock is the process's own processor time, so that a busy machine disturbs little; the step
    is one past the middle of the schedule, where masks that follow a curriculum follow it.
    """
    learners = {arm: _learner(design, arm, data) for arm in design.arms}
    config = next(iter(learners.values())).config
    source = EvenSubset(open_source("", data, "train"), config.training.batch)
    for learner in learners.values():
        learner.open_bank(len(source))
    crops = {arm: learner_samples(learner.config, source) for arm, learner in learners.items()}
    times: dict[str, list[float]] = {arm: [] for arm in learners}
    for turn in range(ROUNDS):
        # loading is part of a step: what costs no arithmetic still costs time
        for arm, learner in learners.items():
            began = time.process_time()
            images = default_collate([crops[arm][i] for i in range(len(source))])
            _step(learner, Batch(torch.arange(len(source)), images, ()))
            if turn:
                times[arm].append(time.process_time() - began)
    base = times[design.reference]
    return {
        arm: statistics.median(t / b for t, b in zip(found, base, strict=True))
        for arm, found in times.items()
    }


def _learner(design: Design, arm: str, data: Path) -> Pretraining:
    config = design.config(arm, design.first_seed, data, device="cpu")
    seed_everything(config.training.seed)
    return build_learner(config, torch.device("cpu"), Path())


def _step(learner: Pretraining, batch: Batch) -> None:
    epochs, per_epoch = learner.config.training.epochs, 10
    at = StepInfo(
        step=(epochs * per_epoch * 3) // 4 | 1,
        steps_per_epoch=per_epoch,
        epochs=epochs,
        batch=learner.config.training.batch,
    )
    set_lr(learner.optimizer, 1e-6)
    learner.optimizer.zero_grad(set_to_none=True)
    learner.loss(learner.student, batch, at)["loss"].backward()
    learner.optimizer.step()
    learner.after_update(at)
