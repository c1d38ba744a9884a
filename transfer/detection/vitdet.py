"""ViTDet: the backbone fine-tuned as the trunk of a Mask R-CNN, scored by COCO AP.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527).
Protocols: `coco-vitdet-100` (the defaults of `Config`) and `coco-vitdet-12` (batch 16, 88,750 steps,
the one behind HPM's figures); docs/detection.md gives the recipe line by line.
Expected with MAE-1600 ViT-B under coco-vitdet-100: 51.6 box AP, 45.9 mask AP; standard deviation over
seeds 0.10 (published). Cost of that: about 1,030 A100-hours; coco-vitdet-12: about 124.
Command: python -m transfer.detection CKPT --benchmark coco-vitdet-12 --data COCO
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import build as loaders
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import create_ddp_model
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm

from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.system.runtime import process_group
from mimbench.vit.weights import VitWeights
from transfer.detection import recipe
from transfer.detection.hooks import Checkpoints
from transfer.detection.order import Order, Positioned, Reader
from transfer.detection.prepare import RECORD, Job, claim, prepare, read_record
from transfer.detection.protocol import Config
from transfer.detection.score import Judge, Scores
from transfer.detection.train import Accumulator, Course, advice, fit

__all__ = ["MAIN_METRIC", "VERSION", "Config", "run"]

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "box_ap"

DETECTIONS = "detections.json"
# detectron2 wraps both so that a type checker cannot see their arguments
TRAIN_LOADER: Any = loaders.build_detection_train_loader
TEST_LOADER: Any = loaders.build_detection_test_loader


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    with process_group(config.machine.device) as ranks:
        job = prepare(weights, config, ranks)
        claim(out, job, weights, version=VERSION)
        fit_job(job, out)
        return conclude(job, out)


def rehearsal(config: Config) -> Config:
    """Return the recipe with a few steps of training, so that its evaluation can be timed."""
    return replace(config, images=4 * config.batch, eval_every=0)


def evaluate_run(
    weights: VitWeights, folder: Path, *, data_root: Path | None = None, device: str | None = None
) -> dict[str, float]:
    """Score a run's newest state again, under the configuration that it was trained with."""
    record = read_record(folder)
    if record["weights"] != weights.digest:
        raise UserError(
            f"{folder} was trained from weights {record['weights'][:12]}, these are "
            f"{weights.digest[:12]} ({weights.name}); name the checkpoint that it started from"
        )
    config = from_mapping(Config, record["config"], str(folder / RECORD))
    if data_root is not None:
        config = replace(config, data=data_root)
    if device is not None:
        # scoring runs in full precision, so any device will do
        machine = replace(config.machine, device=device)
        config = replace(config, machine=machine, precision="fp32")
    with process_group(config.machine.device) as ranks:
        job = prepare(weights, config, ranks)
        if not Checkpoints(job.model, str(folder / "checkpoints")).read_last():
            raise UserError(f"{folder} holds no training state; train first")
        return conclude(job, folder)


def fit_job(job: Job, out: Path) -> None:
    """Train the detector to the end of the recipe, from wherever `out` stands."""
    config, ranks = job.config, job.ranks
    records = recipe.instantiate(job.sets.train.dataset)
    order = Order(len(records), seed=config.seed, rank=ranks.rank, world=ranks.world)
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
    optimizer = recipe.build_optimizer_config(config, job.plan, job.spec)
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
        Course(
            steps=job.plan.steps,
            schedule=recipe.instantiate(recipe.build_schedule_config(job.plan)),
            eval_every=config.eval_every,
            evaluate=lambda: evaluate(job, None),
            begin=lambda step: setattr(order, "start", step * config.batch),
        ),
        out,
        ranks,
    )


def evaluate(job: Job, keep: Path | None) -> dict[str, float]:
    """Score the detector as it is; the figures are the main process's, others get none."""
    judge = _judge(job, keep)
    return dict(judge.scores.metrics) if judge.scores else {}


def _judge(job: Job, keep: Path | None) -> Judge:
    records = recipe.instantiate(job.sets.val.dataset)
    loader = TEST_LOADER(
        dataset=records,
        mapper=Reader(recipe.instantiate(job.sets.val.mapper)),
        sampler=InferenceSampler(len(records)),
        num_workers=job.config.machine.workers,
    )
    judge = Judge(job.names["val"], keep)
    with advice(job.device):
        inference_on_dataset(job.model, loader, judge)
    return judge


def conclude(job: Job, out: Path) -> dict[str, float]:
    """Score the trained detector; keep its detections and what is to be said beside the figures."""
    judge = _judge(job, out / DETECTIONS if job.ranks.main else None)
    metrics: dict[str, float] = {}
    if judge.scores is not None:
        metrics = dict(judge.scores.metrics)
        write_json(out / "extra.json", _beside(job, judge.scores))
    figures: Any = comm.all_gather(metrics)[0]
    return figures


def _beside(job: Job, scores: Scores) -> dict[str, Any]:
    return {
        "tensors": job.converted.report,
        "notes": list(job.plan.notes),
        "plan": to_mapping(job.plan),
        "processes": job.ranks.world,
        "micro_batch": job.batch.per_process,
        "micro_steps": job.batch.micro_steps,
        "data": [job.train.summary, job.val.summary],
        "scored_with": scores.engine,
        "per_class": {name: dict(values) for name, values in scores.per_class.items()},
    }
