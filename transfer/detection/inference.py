"""Runs a detector over the validation pictures, in full precision, and scores what it finds."""

from pathlib import Path
from typing import Any

from detectron2.data import build as loaders
from detectron2.data.samplers import InferenceSampler
from detectron2.evaluation import inference_on_dataset

from transfer.detection import recipe
from transfer.detection.console import advice
from transfer.detection.order import Reader
from transfer.detection.prepare import Job
from transfer.detection.score import DetectionEvaluator

# detectron2 wraps it so that a type checker cannot see its arguments
TEST_LOADER: Any = loaders.build_detection_test_loader


def evaluate(job: Job, keep: Path | None) -> dict[str, float]:
    """Score the detector as it is; the figures are the main process's, others get none."""
    scores = judge(job, keep).scores
    return dict(scores.metrics) if scores else {}


def judge(job: Job, keep: Path | None) -> DetectionEvaluator:
    """Run the detector over the validation pictures; return the judge, scored on the main process."""
    records = recipe.instantiate(job.sets.val.dataset)
    loader = TEST_LOADER(
        dataset=records,
        mapper=Reader(recipe.instantiate(job.sets.val.mapper)),
        sampler=InferenceSampler(len(records)),
        num_workers=job.config.machine.workers,
    )
    verdict = DetectionEvaluator(job.names["val"], keep)
    with advice(job.device):
        inference_on_dataset(job.model, loader, verdict)
    return verdict
