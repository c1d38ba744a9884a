"""Detection outcomes: one matching of detections to their ground truth gives AP on any resample."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mimbench.scores.outcomes import Outcomes, Statistic

RECALLS = np.linspace(0, 1, 101)
Kind = Literal["bbox", "segm"]
KINDS: dict[str, Kind] = {"box_ap": "bbox", "mask_ap": "segm"}
RESAMPLES = 1000
"""So many that other resamples would move the ends of an interval little: by its `error`."""


@dataclass(frozen=True)
class ClassMatches:
    """All detections of one class, best score first."""

    image: np.ndarray
    """(n,) index of the image."""
    hit: np.ndarray
    """(thresholds, n) matched a true object."""
    counted: np.ndarray
    """(thresholds, n) neither crowd nor ignored."""
    objects: np.ndarray
    """(images,) true objects that count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections(Outcomes):
    """Detections matched with their ground truth; gives `box_ap` and `mask_ap` without the data."""

    images: tuple[str, ...]
    """COCO's image ids."""
    matches: Mapping[str, Sequence[ClassMatches]]
    """Metric -> matches of each class that occurs in the ground truth."""

    @classmethod
    def match(cls, found: Sequence[Mapping[str, Any]], truth: Path) -> Detections:
        """Match COCO results with a ground truth in COCO's instances format; needs pycocotools."""
        images: list[int] = []
        matches: dict[str, Sequence[ClassMatches]] = {}
        for metric, kind in KINDS.items():
            images, matches[metric] = match_detections(found, truth, kind)
        return cls(images=tuple(str(i) for i in images), matches=matches)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays: the classes of a metric lie end to end."""
        arrays = {"images": np.array(self.images, np.str_)}
        for metric, classes in self.matches.items():
            if not classes:
                continue
            arrays[f"{metric}_count"] = np.array([len(m.image) for m in classes])
            arrays[f"{metric}_image"] = np.concatenate([m.image for m in classes])
            arrays[f"{metric}_hit"] = np.concatenate([m.hit for m in classes], axis=1)
            arrays[f"{metric}_counted"] = np.concatenate([m.counted for m in classes], axis=1)
            arrays[f"{metric}_objects"] = np.stack([m.objects for m in classes])
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Detections:
        """Return what `arrays` described."""
        matches = {
            metric: _split(arrays, metric) for metric in KINDS if f"{metric}_count" in arrays
        }
        return cls(images=tuple(str(name) for name in arrays["images"]), matches=matches)

    def statistics(self) -> Sequence[Statistic]:
        """Return the AP of boxes and of masks, where the ground truth has objects."""
        return [
            Statistic(
                metric=metric,
                images=self.images,
                value=average_precision(list(classes)),
                resamples=RESAMPLES,
            )
            for metric, classes in self.matches.items()
            if classes
        ]


def _split(arrays: Mapping[str, np.ndarray], metric: str) -> list[ClassMatches]:
    cuts = np.cumsum(arrays[f"{metric}_count"])[:-1]
    parts = zip(
        np.split(arrays[f"{metric}_image"], cuts),
        np.split(arrays[f"{metric}_hit"], cuts, axis=1),
        np.split(arrays[f"{metric}_counted"], cuts, axis=1),
        arrays[f"{metric}_objects"],
        strict=True,
    )
    return [ClassMatches(*part) for part in parts]


def match_detections(
    found: Sequence[Mapping[str, Any]], truth: Path, kind: Kind
) -> tuple[list[int], list[ClassMatches]]:
    """Return image ids and, for each class that occurs, its matches; needs pycocotools."""
    from pycocotools.coco import COCO  # noqa: PLC0415 - optional, only detectors need it
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    other = "segmentation" if kind == "bbox" else "bbox"
    kept = [{k: v for k, v in d.items() if k != other} for d in found]
    # pycocotools reports to stdout, which belongs to the final table
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        load: Any = coco.loadRes
        judge: Any = COCOeval(coco, load(kept) if kept else COCO(), kind)
        return _judge(judge)


def _judge(judge: Any) -> tuple[list[int], list[ClassMatches]]:
    judge.params.areaRng = judge.params.areaRng[:1]
    judge.params.areaRngLbl = judge.params.areaRngLbl[:1]
    judge.params.maxDets = [100]
    judge.evaluate()
    images = [int(i) for i in judge.params.imgIds]
    grid = np.array(judge.evalImgs, dtype=object).reshape(len(judge.params.catIds), len(images))
    classes = [_class_matches(row, len(judge.params.iouThrs)) for row in grid]
    return images, [matches for matches in classes if matches.objects.sum()]


def _class_matches(row: np.ndarray, thresholds: int) -> ClassMatches:
    objects = np.zeros(len(row))
    image: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    score: list[np.ndarray] = [np.zeros(0)]
    hit: list[np.ndarray] = [np.zeros((thresholds, 0), dtype=bool)]
    ignored: list[np.ndarray] = [np.zeros((thresholds, 0), dtype=bool)]
    for index, entry in enumerate(row):
        if entry is None:
            continue
        objects[index] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
        scores = np.asarray(entry["dtScores"], dtype=np.float64)
        image.append(np.full(len(scores), index))
        score.append(scores)
        hit.append(np.asarray(entry["dtMatches"]).reshape(thresholds, -1) != 0)
        ignored.append(np.asarray(entry["dtIgnore"]).reshape(thresholds, -1) != 0)
    order = np.argsort(-np.concatenate(score), kind="mergesort")
    hits, skipped = np.concatenate(hit, axis=1)[:, order], np.concatenate(ignored, axis=1)[:, order]
    return ClassMatches(np.concatenate(image)[order], hits & ~skipped, ~skipped, objects)


def average_precision(classes: list[ClassMatches]) -> Callable[[np.ndarray], np.ndarray]:
    """Return AP in percent (mean over IoU 0.50:0.95 and classes) as a function of image weights."""

    def value(weights: np.ndarray) -> np.ndarray:
        found = np.stack([_class_precision(matches, weights) for matches in classes])
        known = ~np.isnan(found)
        with np.errstate(invalid="ignore"):
            # a resample without any object has no value
            return 100 * np.where(known, found, 0.0).sum(axis=0) / known.sum(axis=0)

    return value


def _class_precision(matches: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """Return (b,) 101-point interpolated precision, averaged over thresholds; NaN without objects.

    Weights are whole numbers: how often each image was drawn.
    """
    objects = weights @ matches.objects
    needed = hits_needed(objects)
    each = weights[:, matches.image]
    seen = np.cumsum(each, axis=1)
    total = np.zeros(len(weights))
    for hit, counted in zip(matches.hit, matches.counted, strict=True):
        # between two hits precision only falls: the hits alone decide
        at = np.flatnonzero(hit)
        right = np.cumsum(each[:, at], axis=1)
        precision = right / np.maximum(seen[:, at] - _skipped(each, counted, at), np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        total += _sample(right, envelope, needed)
    return np.where(objects > 0, total / len(matches.hit), np.nan)


def _skipped(each: np.ndarray, counted: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return (b, at) how many detections up to each place in `at` do not count."""
    ignored = np.flatnonzero(~counted)
    before = np.cumsum(each[:, ignored], axis=1)
    padded = np.concatenate([np.zeros((len(each), 1)), before], axis=1)
    return padded[:, np.searchsorted(ignored, at, side="right")]


def hits_needed(objects: np.ndarray) -> np.ndarray:
    """Return (b, 101) the fewest hits among so many objects whose recall reaches each of `RECALLS`.

    Found by the very division that pycocotools compares: 3 / 10 and the recall written 0.3 differ
    in the last bit, and whether they tie decides which precision is read.
    """
    whole = objects[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        # the product is off by its rounding at most: one below it, then upwards
        fewest = np.maximum(np.ceil(RECALLS * whole) - 1, 0)
        for _ in range(2):
            fewest += fewest / whole < RECALLS
    return fewest


def _sample(right: np.ndarray, envelope: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """Return the mean envelope at 101 recalls for each row, 0 beyond the last recall reached."""
    rows, length = right.shape
    if not length:
        return np.zeros(rows)
    # rows laid end to end, each shifted past the one before: one search serves all, and whole
    # numbers lose nothing by it
    shift = (needed.max() + right[:, -1].max() + 1) * np.arange(rows)[:, None]
    place = np.searchsorted((right + shift).ravel(), (needed + shift).ravel(), side="left")
    inside = place.reshape(rows, -1) - length * np.arange(rows)[:, None]
    padded = np.concatenate([envelope, np.zeros((rows, 1))], axis=1)
    picked = np.take_along_axis(padded, np.clip(inside, 0, length), axis=1)
    return picked.mean(axis=1)
