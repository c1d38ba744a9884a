"""Result folders written before tasks returned a typed result: the one place that knows their files.

Such a result.json has no `format`; what a task had to say lay in files with fixed names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimbench.scores.boxes import draw_detections
from mimbench.scores.confusion import Confusion
from mimbench.scores.figures import Picture
from mimbench.scores.hits import Hits
from mimbench.scores.matches import Detections
from mimbench.scores.outcomes import Outcomes, read_outcomes

FORMAT = 1
OUTCOMES: Mapping[str, type[Outcomes]] = {
    "outcomes.npz": Hits,
    "confusion.npz": Confusion,
    "matches.npz": Detections,
}
FILES = (*OUTCOMES, "detections.json", "extra.json")
"""What a bundle takes of such a folder, beside the files that every run has."""
PICTURES = "pictures"


def upgrade(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return an old result.json in today's form."""
    extra = dict(result.get("extra", {}))
    drawn = extra.get("draws", ())
    known = {
        "intervals": extra.pop("intervals", {}),
        "overrides": extra.pop("overrides", {}),
        "data": str(extra.pop("data", "")),
        "draws": max(1, len(drawn)) if isinstance(drawn, list) else 1,
        "figures": _figures(extra),
        "notes": extra,
        "format": FORMAT,
    }
    return {k: v for k, v in result.items() if k != "extra"} | known


def _figures(extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the scores by class, and take them out of `extra`."""
    boxes, pixels = extra.pop("per_class", None), extra.pop("iou", None)
    extra.pop("acc", None)
    if isinstance(boxes, Mapping):
        values = {str(name): v["box"] for name, v in boxes.items() if "box" in v}
        return [{"title": "box AP", "values": values}]
    if isinstance(pixels, Mapping) and "single" in pixels:
        return [{"title": "IoU", "values": dict(pixels["single"])}]
    return []


def outcomes(folder: Path) -> list[Outcomes]:
    """Return the outcomes in an old run's folder."""
    return [
        read_outcomes(folder / name, kind)
        for name, kind in OUTCOMES.items()
        if (folder / name).is_file()
    ]


def pictures(folder: Path, data: Path) -> list[Path | Picture]:
    """Return the pictures in an old run's folder; detections are drawn where the data still is."""
    found = [*sorted((folder / PICTURES).glob("*.png")), *sorted((folder / PICTURES).glob("*.jpg"))]
    detections, truth = folder / "detections.json", data / "annotations" / "instances_val2017.json"
    if found or not detections.is_file() or not truth.is_file():
        return list(found)
    items = json.loads(detections.read_text(encoding="utf-8"))
    return list(draw_detections(items, truth, data / "val2017"))
