"""ViTDet: the backbone fine-tuned as the trunk of a Mask R-CNN, scored by COCO AP.

Paper: Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527).
Protocols: `coco-vitdet-100` (the defaults of `Config`) and `coco-vitdet-12` (batch 16, 88,750 steps,
the one behind HPM's figures); docs/howto/detection.md gives the recipe line by line. `coco-vitdet-frozen`
is our own: the backbone stays as it is, only pyramid and heads learn.
Expected with MAE-1600 ViT-B under coco-vitdet-100: 51.6 box AP, 45.9 mask AP; standard deviation over
seeds 0.10 (published). Cost of that: about 1,030 A100-hours; coco-vitdet-12: about 124.
Command: python -m transfer.detection CKPT --benchmark coco-vitdet-12 --data COCO
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from mimbench.model import Spec, Weights
from mimbench.networks.kinds import plain
from mimbench.networks.module import ModuleWeights
from mimbench.scores.boxes import draw_detections
from mimbench.scores.figures import Figure
from mimbench.scores.matches import Detections
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.training.identity import claim, run_identity
from mimbench.vit.footprint import Footprint, frozen, saved_parameters, trained
from transfer.detection import flat, recipe
from transfer.detection.convert import convert, target_patch
from transfer.detection.detector import DetectorConfig
from transfer.detection.inference import judge
from transfer.detection.prepare import Designer, DetectorSetup, Job, prepare
from transfer.detection.protocol import Config, plan, resolved
from transfer.detection.score import Scores, read_detections
from transfer.detection.train import fit_job

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "run"]

VERSION = 2
MAIN_METRIC = "box_ap"


def footprint(spec: Spec, config: Config, images: int) -> Footprint:
    """Return memory and disk: a frozen trunk keeps no activations, gradients or moments."""
    if config.trunk == "trained":
        return trained(spec, config, images)
    return replace(frozen(spec, config, images), disk=saved_parameters(spec))


TRAITS = Traits(
    effort=3,
    footprint=footprint,
    rehearsal=lambda c: replace(c, images=4 * c.batch, eval_every=0),
    # scores on the way are looked at, the last one is reported
    canonical=lambda c: replace(c, eval_every=0),
    resolved=resolved,
    beside={"mask_ap": "mask AP"},
)
TASK = "transfer.detection.vitdet"

DETECTIONS = "detections.json"


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Fine-tune, score on the validation pictures, and return the figures in percent."""
    return detect(weights, config, out, design, task=(TASK, VERSION))


def design(weights: Weights, config: Config, *, classes: int) -> DetectorSetup:
    """Return ViTDet over a plain ViT; a network with levels has another detector."""
    if len(weights.spec.levels) > 1:
        raise UserError(
            f"{weights.name}: ViTDet makes a pyramid of a plain ViT's one map, and "
            f"{weights.spec.model} has levels of its own; their counterpart is Mask R-CNN with FPN: "
            "--only coco-fpn-levels-50"
        )
    if isinstance(weights, ModuleWeights):
        return flat.design(weights, config, classes=classes)
    vit = plain(weights, "ViTDet")
    side = recipe.side_of(config, target_patch(vit.spec, config.patch_size))
    planned = plan(config, vit.spec)
    converted = convert(
        vit,
        patch_size=config.patch_size,
        side=side,
        windows=planned.windows(config.window),
        prefix=config.prefix == "kept",
    )
    lazy = recipe.build_model_config(config, planned, vit.spec, converted, classes=classes)
    model = recipe.build_model(lazy, config, seed=config.seed)
    recipe.fill(model, converted)
    optimizer = recipe.build_optimizer_config(config, planned, vit.spec)
    return DetectorSetup(plan=planned, report=converted.report, model=model, optimizer=optimizer)


def detect(
    weights: Weights,
    config: DetectorConfig,
    out: Path,
    designer: Designer,
    *,
    task: tuple[str, int],
) -> TaskResult:
    """Fine-tune a kind of detector, score it, and return the figures in percent."""
    with process_group(config.machine.device) as ranks:
        job = prepare(weights, config, ranks, designer)
        claim(out, run_identity(*task, weights, config), main=ranks.main)
        fit_job(job, out)
        return conclude(job, out)


def conclude(job: Job, out: Path) -> TaskResult:
    """Score the trained detector; its detections stay in `out` in COCO's format."""
    scores = judge(job, out / DETECTIONS if job.ranks.main else None).scores
    metrics: dict[str, float] = {} if scores is None else dict(scores.metrics)
    figures: Any = comm.all_gather(metrics)[0]
    if scores is None:
        return TaskResult(metrics=figures, ran=job.design.ran)
    found, val = read_detections(out / DETECTIONS), job.val
    return TaskResult(
        metrics=figures,
        outcomes=[Detections.match(found, val.annotations)],
        figures=_by_class(scores),
        pictures=draw_detections(found, val.annotations, val.images),
        notes=_notes(job, scores),
        ran=job.design.ran,
    )


def _by_class(scores: Scores) -> list[Figure]:
    return [
        Figure(
            title=f"{kind} AP",
            values={
                name: values[kind] for name, values in scores.per_class.items() if kind in values
            },
        )
        for kind in ("box", "mask")
    ]


def _notes(job: Job, scores: Scores) -> dict[str, Any]:
    return {
        "tensors": job.design.report,
        "notes": list(job.plan.notes),
        "plan": to_mapping(job.plan),
        "processes": job.ranks.world,
        "micro_batch": job.batch.per_process,
        "micro_steps": job.batch.micro_steps,
        "data": [job.train.summary, job.val.summary],
        "scored_with": scores.engine,
    }
