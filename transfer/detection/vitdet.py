"""ViTDet: the backbone fine-tuned as the trunk of a Mask R-CNN, scored by COCO AP.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527).
Protocols: `coco-vitdet-100` (the defaults of `Config`) and `coco-vitdet-12` (batch 16, 88,750 steps,
the one behind HPM's figures); docs/detection.md gives the recipe line by line.
Expected with MAE-1600 ViT-B under coco-vitdet-100: 51.6 box AP, 45.9 mask AP; standard deviation over
seeds 0.10 (published). Cost of that: about 1,030 A100-hours; coco-vitdet-12: about 124.
Command: python -m transfer.detection CKPT --benchmark coco-vitdet-12 --data COCO
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import create_ddp_model
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from mimbench.config import from_mapping, to_mapping
from mimbench.errors import UserError
from mimbench.files import write_json
from mimbench.optim import BatchPlan, plan_batch
from mimbench.runtime import Ranks, pick_device, process_group
from mimbench.weights import VitSpec, VitWeights
from transfer.detection import data, recipe
from transfer.detection.convert import Converted, convert, target_patch
from transfer.detection.order import Order, Positioned, Reader
from transfer.detection.protocol import Config, Plan, plan
from transfer.detection.score import Judge, Scores
from transfer.detection.train import Accumulator, Checkpoints, Course, advice, fit

__all__ = ["MAIN_METRIC", "VERSION", "Config", "run"]

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "box_ap"

RECORD = "run.json"
DETECTIONS = "detections.json"
FREE = ("data", "machine")
"""Fields that may change between the parts of one run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run is made of, with nothing built twice."""

    config: Config
    spec: VitSpec
    converted: Converted
    plan: Plan
    train: data.Split
    val: data.Split
    names: dict[str, str]
    sets: DictConfig
    model: nn.Module
    ranks: Ranks
    batch: BatchPlan

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    with process_group() as ranks:
        job = prepare(weights, config, ranks)
        claim(out, job, weights)
        fit_job(job, out)
        return conclude(job, out)


def evaluate_run(weights: VitWeights, folder: Path, *, data_root: Path | None = None) -> Scores:
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
    with process_group() as ranks:
        job = prepare(weights, config, ranks)
        if not Checkpoints(job.model, str(folder / "checkpoints")).read_last():
            raise UserError(f"{folder} holds no training state; train first")
        conclude(job, folder)
        scores = comm.all_gather(_last_scores(folder) if ranks.main else None)[0]
    return scores


def prepare(weights: VitWeights, config: Config, ranks: Ranks) -> Job:
    """Check the data, convert the weights and build the detector."""
    device = pick_device(config.machine.device, ranks.local)
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision fp16 needs a CUDA GPU, this is {device}; set precision: bf16 or fp32"
        )
    train = data.inspect(config.data / config.train_json, config.data / config.train_images)
    val = data.inspect(config.data / config.val_json, config.data / config.val_images)
    data.check_same_classes(train, val)
    patch = target_patch(weights.spec, config.patch_size)
    side = recipe.side_of(config, patch)
    converted = convert(weights, patch_size=config.patch_size, side=side)
    planned = plan(config, weights.spec)
    if ranks.main:
        for line in (train.summary, val.summary, converted.report, *planned.notes):
            logger.info("%s", line)
    model_config = recipe.build_model_config(
        config, planned, weights.spec, converted, classes=len(train.classes)
    )
    model = recipe.build_model(model_config, config, seed=config.seed)
    recipe.fill(model, converted)
    names = {"train": data.register(train), "val": data.register(val)}
    return Job(
        config=config,
        spec=weights.spec,
        converted=converted,
        plan=planned,
        train=train,
        val=val,
        names=names,
        sets=recipe.build_data_config(config, names, bitmask=train.codes > 0),
        model=model.to(device),
        ranks=ranks,
        batch=plan_batch(config.batch, world=ranks.world, at_most=config.machine.max_batch),
    )


def claim(out: Path, job: Job, weights: VitWeights) -> None:
    """Write down whose folder this is, or refuse a folder that holds another run."""
    mine = {
        "version": VERSION,
        "weights": weights.digest,
        "name": weights.name,
        "config": to_mapping(job.config),
        "tensors": job.converted.report,
    }
    if (out / RECORD).exists():
        theirs = read_record(out)
        differing = [key for key in ("version", "weights") if theirs[key] != mine[key]]
        differing += [
            key
            for key, value in mine["config"].items()
            if key not in FREE and theirs["config"].get(key) != value
        ]
        if differing:
            raise UserError(
                f"{out} holds a run that differs in {', '.join(differing)}; "
                "choose another folder or delete this one"
            )
    comm.synchronize()
    if job.ranks.main:
        write_json(out / RECORD, mine)
    comm.synchronize()


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `claim` wrote."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not the folder of a detection run: {RECORD} cannot be read ({error})"
        ) from error


def fit_job(job: Job, out: Path) -> None:
    """Train the detector to the end of the recipe, from wherever `out` stands."""
    config, ranks = job.config, job.ranks
    records = instantiate(job.sets.train.dataset)
    order = Order(len(records), seed=config.seed, rank=ranks.rank, world=ranks.world)
    reader = Reader(instantiate(job.sets.train.mapper))
    loader = build_detection_train_loader(
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
        instantiate(optimizer),
        micro_steps=job.batch.micro_steps,
        precision=config.precision,
        seed=config.seed,
    )
    fit(
        trainer,
        Course(
            steps=job.plan.steps,
            schedule=instantiate(recipe.build_schedule_config(job.plan)),
            eval_every=config.eval_every,
            evaluate=lambda: evaluate(job, None),
            begin=lambda step: setattr(order, "start", step * config.batch),
        ),
        out,
    )


def evaluate(job: Job, keep: Path | None) -> dict[str, float]:
    """Score the detector as it is; the figures are the main process's, others get none."""
    judge = _judge(job, keep)
    return dict(judge.scores.metrics) if judge.scores else {}


def _judge(job: Job, keep: Path | None) -> Judge:
    records = instantiate(job.sets.val.dataset)
    loader = build_detection_test_loader(
        dataset=records,
        mapper=Reader(instantiate(job.sets.val.mapper)),
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
    return comm.all_gather(metrics)[0]


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
