"""Training: detectron2's trainer and hooks, and state that resumes exactly."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import build as loaders
from detectron2.engine import create_ddp_model, hooks
from fvcore.common.param_scheduler import ParamScheduler

from mimbench.system.runtime import Ranks
from mimbench.training.watch import StopSignals
from transfer.detection import recipe
from transfer.detection.console import advice
from transfer.detection.hooks import Checkpoints, CurveWriter, ProgressHook, StopOnSignal
from transfer.detection.inference import evaluate
from transfer.detection.loop import Accumulator
from transfer.detection.order import EndlessSampler, Positioned, Reader
from transfer.detection.prepare import Job

logger = logging.getLogger(__name__)

WRITE_EVERY = 20
# detectron2 wraps it so that a type checker cannot see its arguments
TRAIN_LOADER: Any = loaders.build_detection_train_loader


def save_period(steps: int) -> int:
    """Return the steps between saved states: the official 5000, more often in a short run."""
    return max(1, min(5000, steps // 10))


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a training goes, beside the step itself."""

    steps: int
    schedule: ParamScheduler
    """Multiplier of the learning rate over the run."""
    eval_every: int
    evaluate: Callable[[], Mapping[str, float]]
    """Scores the model as it is, on every process."""
    begin: Callable[[int], None]
    """Learns the step from which training continues, before the first batch is drawn."""


def fit(trainer: Accumulator, course: TrainingSettings, out: Path, ranks: Ranks) -> None:
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
        writers = [CurveWriter(out, start)]
        trainer.register_hooks([hooks.PeriodicWriter(writers, WRITE_EVERY), ProgressHook()])
    with StopSignals(ranks) as signals, advice(trainer.device):
        trainer.register_hooks([StopOnSignal(checkpoints, signals)])
        trainer.train(start, course.steps)


def fit_job(job: Job, out: Path) -> None:
    """Train the detector to the end of the recipe, from wherever `out` stands."""
    config, ranks = job.config, job.ranks
    records = recipe.instantiate(job.sets.train.dataset)
    order = EndlessSampler(len(records), seed=config.seed, rank=ranks.rank, world=ranks.world)
    reader = Reader(recipe.instantiate(job.sets.train.mapper))
    loader = TRAIN_LOADER(
        dataset=Positioned(records, reader, seed=config.seed),
        mapper=None,
        sampler=order,
        total_batch_size=job.batch.per_process * ranks.world,
        # grouping by shape would tie pictures to the batch size; with one picture a process, as in
        # the published runs, it does nothing
        aspect_ratio_grouping=False,
        num_workers=config.machine.workers,
    )
    optimizer = job.design.optimizer
    optimizer.params.model = job.model
    gpu = job.device.type == "cuda"
    trainer = Accumulator(
        create_ddp_model(
            job.model,
            fp16_compression=gpu and config.precision == "fp16",
            device_ids=[ranks.local] if gpu else None,
            broadcast_buffers=False,
        ),
        loader,
        recipe.instantiate(optimizer),
        micro_steps=job.batch.micro_steps,
        precision=config.precision,
        seed=config.seed,
    )
    fit(
        trainer,
        TrainingSettings(
            steps=job.plan.steps,
            schedule=recipe.instantiate(recipe.build_schedule_config(job.plan)),
            eval_every=config.eval_every,
            evaluate=lambda: evaluate(job, None),
            begin=lambda step: setattr(order, "start", step * config.batch),
        ),
        out,
        ranks,
    )
