"""Which modules numbers come from, and which test files hold them. Each side is checked by a test."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path

from bench.mutation.places import ROOT

SUBJECTS: dict[str, tuple[str, ...]] = {
    "scores": tuple(f"mimbench.scores.{name}" for name in (
        "confidence", "confusion", "hits", "matches", "metrics", "neighbours", "outcomes", "shares",
        "spectra", "verdicts",
    )),
    "features and search": (
        "mimbench.features.extract", "mimbench.features.patches", "mimbench.features.protocol",
        "mimbench.features.search", "mimbench.features.storage",
    ),
    "k-NN": ("knn.classify", "knn.vote"),
    "probes": (
        "mimbench.features.logistic.*", "mimbench.training.optim",
        *(f"transfer.classification.{name}" for name in (
            "attentive", "heads", "layers", "linear", "logreg", "lowshot", "pooling", "probe", "tokens",
        )),
    ),
    "dense probes": (
        *(f"transfer.dense.{name}" for name in (
            "confusion", "layers", "neighbours", "patch_logreg", "patches", "views", "votes",
        )),
    ),
    "preprocessing and augmentation": (
        "mimbench.data.digest", "mimbench.data.images", "mimbench.data.lists",
        "mimbench.data.preprocess", "mimbench.data.subsets", "mimbench.vit.normalise",
        "mimbench.vit.depth", "transfer.classification.augmentation", "transfer.classification.recipes",
        "transfer.classification.training", "transfer.segmentation.pipelines",
        "pretrain.sources.crops", "pretrain.objectives.distill.views",
    ),
    "positions": ("mimbench.vit.positions", "mimbench.vit.relative", "mimbench.vit.rotary"),
    "label maps": (
        "mimbench.data.label_maps", "transfer.segmentation.data", "transfer.segmentation.labels",
    ),
    "boxes": (
        "transfer.detection.crop", "transfer.detection.data", "transfer.detection.detector",
        "transfer.detection.edges", "transfer.detection.order",
        "transfer.detection.protocol", "transfer.detection.score",
    ),
    "digests": ("mimbench.benchmarks.run_config",),
    "masks": tuple(f"pretrain.masks.{name}" for name in (
        "adversarial", "attention", "block", "colour", "contrast", "even", "grid", "hard", "harder",
        "multiblock", "rolled", "salience", "uniform",
    )),
    "objectives": (
        "pretrain.objectives.adversarial", "pretrain.objectives.learner",
        "pretrain.objectives.looking", "pretrain.objectives.distill.learner",
        "pretrain.objectives.distill.loss", "pretrain.models.generator",
        "pretrain.models.image_targets", "pretrain.models.reconstruction", "pretrain.models.teacher",
    ),
}  # fmt: skip
"""Patterns of modules by subject."""

HOLDING: tuple[str, ...] = (
    "attentive", "attentive_golden", "attmask", "augmentation", "automae", "automae_golden",
    "automae_learner", "backbone", "bank", "clmae", "comparison", "confidence", "cross_decoder",
    "dense_golden", "dense_tasks", "detection_data", "detection_fpn36", "detection_order",
    "detection_pipeline", "detection_recipe", "detection_score", "distill", "distill_golden",
    "distill_recipes", "encoder_options", "features", "finetune", "golden_backbones", "golden_core",
    "golden_recipes", "hpm_cheap", "image_targets", "knn", "knn_task", "linear_logreg", "linear_probe",
    "lowshot", "masks_baselines", "masks_contract", "masks_golden", "masks_shapes", "neighbours",
    "normalise", "numbers_*", "optim", "patches", "pretrain_accumulation_features", "pretrain_golden",
    "pretrain_images", "pretrain_linear", "pretrain_losses_teacher_rates", "pretrain_odd_images",
    "pretrain_shapes_targets_masks", "pretrain_sources", "protocol_digest", "runtime", "segmentation_data",
    "segmentation_multiscale", "segmentation_pipeline", "segmentation_recipe", "segmentation_score",
    "several_masks", "sizes", "spectra",
)  # fmt: skip
"""The test files that hold numbers (`tests/test_*.py`); others are about commands, processes, pages."""


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(patterns: Sequence[str] = ("*",)) -> dict[str, str]:
    """Return module -> subject, of the modules under `patterns`."""
    known = [
        module_name(path)
        for folder in ("mimbench", "pretrain", "transfer", "knn")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.stat().st_size > 200 and path.name != "__main__.py"
    ]
    found: dict[str, str] = {}
    for subject, wanted in SUBJECTS.items():
        for name in known:
            inside = any(fnmatchcase(name, pattern) for pattern in wanted)
            if inside and any(fnmatchcase(name, pattern) for pattern in patterns):
                found.setdefault(name, subject)
    return found


def in_turns(found: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (module, subject) with the subjects in turns, so that a short run sees each of them."""
    queues: dict[str, list[tuple[str, str]]] = {}
    for module, subject in found.items():
        queues.setdefault(subject, []).append((module, subject))
    rows = zip_longest(*queues.values())
    return [pair for row in rows for pair in row if pair is not None]


def test_files() -> list[str]:
    """Return the test files that hold numbers, relative to the root."""
    return [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if any(fnmatchcase(path.stem, f"test_{pattern}") for pattern in HOLDING)
    ]
