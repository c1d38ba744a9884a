"""Per-class results from per-image outcomes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.report.markup import bar, text
from mimbench.scores.outcomes import CLASSIFICATION, SEGMENTATION

SHOWN = 10


def class_scores(folder: Path, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Return class -> top-1, IoU or box AP in percent.

    Args:
        folder: A run's, with its outcomes.
        extra: The notes of the result: segmentation and detection name their classes.
    """
    extra = extra or {}
    if isinstance(named := extra.get("per_class"), Mapping):
        return {str(name): float(v["box"]) for name, v in named.items() if "box" in v}
    if isinstance(named := extra.get("iou"), Mapping) and "single" in named:
        return {str(name): float(value) for name, value in named["single"].items()}
    if (path := folder / CLASSIFICATION).is_file():
        return _top1(path)
    if (path := folder / SEGMENTATION).is_file():
        with np.load(path, allow_pickle=False) as file:
            both, either, labelled = (
                file[k].sum(axis=0) for k in ("intersect", "union", "labelled")
            )
        return {
            f"class {i + 1}": 100 * float(both[i] / either[i]) for i in np.flatnonzero(labelled)
        }
    return {}


def _top1(path: Path) -> dict[str, float]:
    with np.load(path, allow_pickle=False) as file:
        names, labels = file["images"], file["labels"]
        drawn = file["draws"] if "draws" in file else file["top5"][None, :, 0]
        hits = (drawn == labels).mean(axis=0)
    found = {}
    for label in np.unique(labels):
        mine = labels == label
        name = str(names[np.argmax(mine)])
        found[name.split("/")[0] if "/" in name else f"class {label}"] = 100 * float(
            hits[mine].mean()
        )
    return found


def class_bars(scores: dict[str, float], title: str, index: int) -> str:
    """Return bars of all classes, or of the best and worst where there are many."""
    order = sorted(scores, key=lambda name: -scores[name])
    many = len(order) > 2 * SHOWN
    shown = order[:SHOWN] + order[-SHOWN:] if many else order
    bars = [bar(name, scores[name], 100, index) for name in shown]
    if many:
        bars.insert(SHOWN, f'<p class="soft">{len(order) - 2 * SHOWN} more</p>')
    return f"<div><h3>{text(title)}</h3>{''.join(bars)}</div>"
