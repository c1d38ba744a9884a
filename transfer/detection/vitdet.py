"""ViTDet: the backbone fine-tuned as the trunk of a Mask R-CNN, scored by COCO AP.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527).
Protocols: `coco-vitdet-100` (the defaults of `Config`) and `coco-vitdet-12` (batch 16, 88,750 steps,
the one behind HPM's figures); docs/detection.md gives the recipe line by line.
Expected with MAE-1600 ViT-B under coco-vitdet-100: 51.6 box AP, 45.9 mask AP; standard deviation over
seeds 0.10 (published). Cost of that: about 1,030 A100-hours; coco-vitdet-12: about 124.
Command: python -m transfer.detection CKPT --benchmark coco-vitdet-12 --data COCO
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from mimbench.system.config import to_mapping
from mimbench.system.files import write_json
from mimbench.system.runtime import process_group
from mimbench.training.identity import claim, run_identity
from mimbench.vit.weights import VitWeights
from transfer.detection.inference import judge
from transfer.detection.prepare import Job, prepare
from transfer.detection.protocol import Config
from transfer.detection.score import Scores
from transfer.detection.train import fit_job

__all__ = ["MAIN_METRIC", "VERSION", "Config", "run"]

VERSION = 2
MAIN_METRIC = "box_ap"
TASK = "transfer.detection.vitdet"

DETECTIONS = "detections.json"


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    with process_group(config.machine.device) as ranks:
        job = prepare(weights, config, ranks)
        claim(out, run_identity(TASK, VERSION, weights, config), main=ranks.main)
        fit_job(job, out)
        return conclude(job, out)


def rehearsal(config: Config) -> Config:
    """Return the recipe with a few steps of training, so that its evaluation can be timed."""
    return replace(config, images=4 * config.batch, eval_every=0)


def conclude(job: Job, out: Path) -> dict[str, float]:
    """Score the trained detector; keep its detections and notes."""
    verdict = judge(job, out / DETECTIONS if job.ranks.main else None)
    metrics: dict[str, float] = {}
    if verdict.scores is not None:
        metrics = dict(verdict.scores.metrics)
        write_json(out / "extra.json", _beside(job, verdict.scores))
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
