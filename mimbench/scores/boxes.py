"""Detections drawn on their images, for the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mimbench.scores.figures import Picture

MOST, LEAST_SCORE, SUREST = 8, 0.5, 3
SIDE = 320
"""Pixels: smaller images are enlarged by a whole number, so that labels can be read."""
TINTS = ["#e4572e", "#29a0b1", "#f3a712", "#6a4c93", "#76b041", "#d81e5b", "#1982c4", "#8d6e63"]


def draw_detections(
    detections: Sequence[Mapping[str, Any]], truth: Path, images: Path
) -> list[Picture]:
    """Return the first images of a set with their detections.

    Args:
        detections: COCO results.
        truth: COCO's instances format: names the images and the classes.
        images: The folder that its file names are relative to.
    """
    content = json.loads(truth.read_text(encoding="utf-8"))
    names = {c["id"]: c["name"] for c in content["categories"]}
    found: dict[int, list[Mapping[str, Any]]] = {}
    for item in detections:
        found.setdefault(item["image_id"], []).append(item)
    first = sorted(content["images"], key=lambda i: i["id"])[:MOST]
    return [
        _drawn(images / i["file_name"], found.get(i["id"], []), names)
        for i in first
        if (images / i["file_name"]).is_file()
    ]


def _drawn(file: Path, items: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Picture:
    items, caption = _worth_showing(items)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = max(1, SIDE // max(image.size))
    image = image.resize((image.width * scale, image.height * scale))
    pen = ImageDraw.Draw(image)
    for item in items:
        x, y, w, h = (v * scale for v in item["bbox"])
        tint = TINTS[item["category_id"] % len(TINTS)]
        pen.rectangle((x, y, x + w, y + h), outline=tint, width=2)
        pen.text(
            (x + 3, y + 1), f"{names.get(item['category_id'], '?')} {item['score']:.2f}", fill=tint
        )
    return Picture(name=f"detections-{file.stem}", image=image, caption=caption)


def _worth_showing(items: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Return the sure detections, or the surest few where none is sure, and a caption."""
    ranked = sorted(items, key=lambda item: -item["score"])
    sure = [item for item in ranked if item["score"] >= LEAST_SCORE]
    if sure:
        return sure, f"{len(sure)} detections above {LEAST_SCORE}"
    if not ranked:
        return [], "nothing detected"
    return ranked[
        :SUREST
    ], f"none above {LEAST_SCORE}; the {len(ranked[:SUREST])} surest of {len(ranked)}"
