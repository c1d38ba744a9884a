"""Result records of VisBench (github.com/turhancan97/VisBench): JSON, one run a line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mimbench.system.errors import printable
from mimbench.system.files import value_digest
from mimbench.tables.foreign.reading import fault, read_lines
from mimbench.tables.foreign.rows import SEEDS, ForeignRow

LICENCE = "MIT"
SCHEMA = 9
"""The newest of the records that are read; fields were only ever added."""
TEXTS = ("backbone", "backbone_key", "task", "level", "dataset", "split", "pooling", "feature_mode")
OBJECTS = ("task_params", "dataset_params", "finetune")
LONGEST = 400
HUGE = 1e12

SHARES = frozenset(
    [
        "top1",
        "top5",
        "accuracy",
        "precision",
        "recall",
        "f1",
        "iou",
        "binary_iou",
        "miou",
        "miou_per_image",
        "pixel_acc",
        "mean_acc",
        "d1",
        "d2",
        "d3",
        "mAP",
        "map_50",
        "map_50_95",
        "mask_map_50",
        "mask_map_50_95",
        "box_map_50",
        "ordinal_accuracy",
    ]
)
"""Between 0 and 1 there, percent here."""
CORRELATIONS = frozenset(
    [
        "correlation",
        "edge_correlation",
        "keypoint_correlation",
        "corner_correlation",
        "occlusion_edge_correlation",
    ]
)
ERRORS = frozenset(
    [
        "abs_rel",
        "mean",
        "median",
        "orientation_error",
        "rotation_error_deg",
        "rotation_median_deg",
        "translation_error",
        "rmse",
        "mae",
    ]
)
"""Smaller is better; metres, degrees or the target's own unit."""
WITH_THRESHOLD = frozenset({"recall", "auc", "rotation_acc"})
"""Shares whose name goes on with @ and the threshold."""
NO_SCORES = frozenset(
    [
        "classes_scored",
        "tie_rate",
        "num_corr",
        "num_matches",
        "detections_per_image",
        "ordinal_vertical",
    ]
)
CONTEXT = ("ceiling_", "floor_")
"""What the data allows at most, or gives for free: no property of the backbone."""
CORRECTED = "/crop1"
"""Ends the key of a backbone that was run again after a fault in its preprocessing (their 23a)."""


def read(path: Path, source: str, licence: str) -> Iterator[tuple[int, ForeignRow]]:
    """Yield line and row for every score; of several runs of one cell the newest counts."""
    records = [
        (n, _record(path, n, text)) for n, text in enumerate(read_lines(path), 1) if text.strip()
    ]
    keys = {(r["backbone"], r["backbone_key"]) for _, r in records}
    newest: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
    for line, record in records:
        if (record["backbone"], record["backbone_key"] + CORRECTED) in keys:
            continue
        recipe = record["recipe"] = _recipe(path, line, record)
        cell = (record["backbone"], record["backbone_key"], recipe, record.get("seed"))
        before = newest.get(cell)
        if before and before[1]["timestamp"] == record["timestamp"]:
            raise fault(path, line, f"the same run stands in line {before[0]}")
        if before is None or before[1]["timestamp"] < record["timestamp"]:
            newest[cell] = line, record
    for line, record in newest.values():
        yield from _rows(path, line, record, source, licence)


def _record(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise fault(path, line, f"is not JSON: {printable(str(error), 80)}") from error
    if not isinstance(record, dict):
        raise fault(path, line, "should hold an object, as VisBench writes them")
    version = record.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= SCHEMA:
        raise fault(
            path, line, f"schema_version is {_shown(version)}, this version reads 1 to {SCHEMA}"
        )
    for name in (*TEXTS, "timestamp"):
        value = record.get(name)
        if not isinstance(value, str) or not value or len(value) > LONGEST:
            raise fault(path, line, f"{name} is {_shown(value)}, expected a short text")
    # null stands for nothing: fields that the first schemas did not have
    record = {**record, **{name: record.get(name) or {} for name in OBJECTS}}
    for name in ("metrics", *OBJECTS):
        if not isinstance(record.get(name), dict):
            raise fault(path, line, f"{name} is {_shown(record.get(name))}, expected an object")
    seed = record.get("seed")
    if seed is not None and (
        isinstance(seed, bool) or not isinstance(seed, int) or seed not in SEEDS
    ):
        raise fault(path, line, f"seed is {_shown(seed)}, expected a whole number")
    return record


def _shown(value: object) -> str:
    return printable(repr(value), 40)


def _recipe(path: Path, line: int, record: Mapping[str, Any]) -> str:
    """Return the digest of all that must agree before two backbones may be compared: all but the backbone.

    `pooling` counts as it was asked for: what "default" comes to is the backbone's own.
    """
    tuned = {key: record["finetune"].get(key) for key in ("blocks", "backbone_lr")}
    chosen = {name: record[name] for name in ("task", "level", "dataset", "split", "feature_mode")}
    chosen["pooling"] = record.get("pooling_requested") or record["pooling"]
    chosen["finetune"] = tuned if record["finetune"] else None
    for name in ("task_params", "dataset_params", "layers", "dataset_fingerprint"):
        chosen[name] = record.get(name)
    try:
        return value_digest(chosen)[:8]
    except ValueError as error:
        raise fault(path, line, f"holds numbers that are none: {error}") from error


def _rows(
    path: Path, line: int, record: dict[str, Any], source: str, licence: str
) -> Iterator[tuple[int, ForeignRow]]:
    named = record["task_params"].get("protocol") or record["task"]
    frozen = "fine-tuned" if record["finetune"] else "frozen"
    for metric, value in record["metrics"].items():
        if metric.startswith(CONTEXT) or metric in NO_SCORES:
            continue
        yield (
            line,
            ForeignRow(
                model=printable(record["backbone"]),
                family=printable(record["backbone"]).partition("_")[0],
                setting=printable(record["backbone_key"]),
                benchmark=printable(record["task"]),
                dataset=printable(f"{record['dataset']}/{record['split']}"),
                metric=printable(metric, 60),
                value=_value(path, line, metric, value),
                lower_is_better=metric in ERRORS,
                seed=record.get("seed"),
                protocol=f"visbench {printable(str(named), 80)}, {frozen} [{record['recipe']}]",
                source=source,
                licence=licence,
            ),
        )


def _value(path: Path, line: int, metric: str, value: Any) -> float:
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    # an integer may be too large to be asked whether it is finite
    if not plain or not -HUGE < value < HUGE:
        raise fault(path, line, f"{printable(metric, 60)} is {_shown(value)}, expected a number")
    share = metric in SHARES or (metric.partition("@")[0] in WITH_THRESHOLD and "@" in metric)
    if share:
        low, high = 0.0, 1.0
    elif metric in CORRELATIONS:
        low, high = -1.0, 1.0
    elif metric in ERRORS:
        low, high = 0.0, HUGE
    else:
        raise fault(
            path,
            line,
            f"'{printable(metric, 60)}' is no metric that is known here: which way is better?",
        )
    if not low <= value <= high:
        raise fault(path, line, f"{metric} is {value:g}, expected {low:g} to {high:g}")
    return 100 * float(value) if share else float(value)
