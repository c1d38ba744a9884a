"""Per-image outcomes that tasks leave beside their numbers, as functions of image weights."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.scores.confidence import (
    Interval,
    bootstrap,
    bootstrap_mean,
    mean_iou,
    percentile_interval,
)
from mimbench.scores.matches import KINDS, ClassMatches, average_precision, match_detections
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path

logger = logging.getLogger(__name__)
CLASSIFICATION, SEGMENTATION, DETECTION = "outcomes.npz", "confusion.npz", "detections.json"
MATCHES = "matches.npz"
TRUTH = Path("annotations") / "instances_val2017.json"
TOLERANCE = 0.005
"""Points by which outcomes may differ from the metric that the task returned."""
RESAMPLES = {"top1": 2000, "top1_sd": 200, "miou": 1000, "box_ap": 300, "mask_ap": 300}


@dataclass(frozen=True)
class Outcome:
    """One metric over test images, computable on any resample of them."""

    metric: str
    images: tuple[str, ...]
    value: Callable[[np.ndarray], np.ndarray]
    """Image weights (b, images) in, metric in percent (b,) out."""
    hits: np.ndarray | None = None
    """Right (1) or wrong (0) for each image, for top-1; over several draws the share of right ones."""

    def whole(self) -> float:
        """Return the metric on all images."""
        return float(self.value(np.ones((1, len(self.images))))[0])

    def interval(self, seed: int = 0) -> Interval:
        """Return the 95 % sampling interval."""
        rng = np.random.default_rng(seed)
        if self.hits is not None:
            return percentile_interval(100 * bootstrap_mean(self.hits, rng, RESAMPLES["top1"]))
        draws = bootstrap([self.value], len(self.images), rng, RESAMPLES[self.metric])
        return percentile_interval(draws[0])


def keep_matches(out: Path, data: Path) -> None:
    """Match detections with the truth once, and keep the matches: they need no data set later."""
    detections, truth = out / DETECTION, data / TRUTH
    if not detections.is_file() or not truth.is_file():
        return
    arrays: dict[str, np.ndarray] = {}
    for metric, kind in KINDS.items():
        images, classes = match_detections(detections, truth, kind)
        arrays["images"] = np.array([str(i) for i in images])
        arrays[f"{metric}_count"] = np.array([len(m.image) for m in classes])
        arrays[f"{metric}_image"] = np.concatenate([m.image for m in classes])
        arrays[f"{metric}_hit"] = np.concatenate([m.hit for m in classes], axis=1)
        arrays[f"{metric}_counted"] = np.concatenate([m.counted for m in classes], axis=1)
        arrays[f"{metric}_objects"] = np.stack([m.objects for m in classes])
    with atomic_path(out / MATCHES) as part, part.open("wb") as file:
        # pyright takes the keyword `allow_pickle` for one of the arrays
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_outcomes(folder: Path) -> dict[str, Outcome]:
    """Return metric -> outcome for all that the folder of a run holds."""
    found: list[Outcome] = []
    if (path := folder / CLASSIFICATION).is_file():
        found += _classification(_load(path, "images", "labels", "top5"))
    if (path := folder / SEGMENTATION).is_file():
        found.append(_segmentation(_load(path, "images", "intersect", "union", "labelled")))
    if (path := folder / MATCHES).is_file():
        found += _detection(_load(path, "images", *(f"{m}_image" for m in KINDS)))
    return {outcome.metric: outcome for outcome in found}


def faithful_outcomes(folder: Path, metrics: Mapping[str, float]) -> dict[str, Outcome]:
    """Return the outcomes that reproduce the metrics."""
    return {
        metric: outcome
        for metric, outcome in read_outcomes(folder).items()
        if metric in metrics and abs(outcome.whole() - metrics[metric]) <= TOLERANCE
    }


def intervals(folder: Path, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metric -> half width of its 95 % interval, for metrics that the outcomes reproduce."""
    found = faithful_outcomes(folder, metrics)
    for metric in read_outcomes(folder).keys() & metrics.keys() - found.keys():
        logger.info("%s is no mean over the images of one outcomes file: no interval", metric)
    return {metric: outcome.interval().half for metric, outcome in found.items()}


def _load(path: Path, *names: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable: {error}; run the cell again (--fresh)") from error
    if lacking := [name for name in names if name not in content]:
        raise UserError(f"{path} lacks {', '.join(lacking)}; run the cell again (--fresh)")
    return content


def _names(content: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in content["images"])


def _classification(content: Mapping[str, Any]) -> list[Outcome]:
    """Return top-1, and its spread where there are several draws of the training images."""
    drawn = content.get("draws", content["top5"][None, :, 0])
    right = (drawn == content["labels"]).astype(np.float64)
    hits = right.mean(axis=0)

    def value(weights: np.ndarray) -> np.ndarray:
        return 100 * (weights @ hits) / weights.sum(axis=1)

    def deviation(weights: np.ndarray) -> np.ndarray:
        tops = 100 * (weights @ right.T) / weights.sum(axis=1, keepdims=True)
        return tops.std(axis=1, ddof=1)

    found = [Outcome("top1", _names(content), value, hits)]
    if len(right) > 1:
        found.append(Outcome("top1_sd", _names(content), deviation))
    return found


def _segmentation(content: Mapping[str, Any]) -> Outcome:
    value = mean_iou(content["intersect"], content["union"], content["labelled"])
    return Outcome("miou", _names(content), value)


def _detection(content: Mapping[str, Any]) -> list[Outcome]:
    found = []
    for metric in KINDS:
        cuts = np.cumsum(content[f"{metric}_count"])[:-1]
        parts = zip(
            np.split(content[f"{metric}_image"], cuts),
            np.split(content[f"{metric}_hit"], cuts, axis=1),
            np.split(content[f"{metric}_counted"], cuts, axis=1),
            content[f"{metric}_objects"],
            strict=True,
        )
        classes = [ClassMatches(*part) for part in parts]
        found.append(Outcome(metric, _names(content), average_precision(classes)))
    return found
