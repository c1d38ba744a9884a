"""Detections drawn on their images, for the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mimbench.scores.figures import Picture
from mimbench.scores.lettering import BLACK, TONES, WHITE, font_for, ink_on

MOST, LEAST_SCORE, SUREST = 8, 0.5, 3
SIDE = 480
"""Pixels: smaller images are enlarged by a whole number, so that labels can be read."""
Item = Mapping[str, Any]


def draw_detections(detections: Sequence[Item], truth: Path, images: Path) -> list[Picture]:
    """Return the first images of a set with their detections.

    Args:
        detections: COCO results.
        truth: COCO's instances format: names the images and the classes.
        images: The folder that its file names are relative to.
    """
    content = json.loads(truth.read_text(encoding="utf-8"))
    names = {c["id"]: c["name"] for c in content["categories"]}
    found, true = _by_image(detections), _by_image(content.get("annotations", []))
    first = sorted(content["images"], key=lambda i: i["id"])[:MOST]
    return [
        _drawn(images / i["file_name"], found.get(i["id"], []), true.get(i["id"], []), names)
        for i in first
        if (images / i["file_name"]).is_file()
    ]


def _by_image(items: Sequence[Item]) -> dict[int, list[Item]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(item["image_id"], []).append(item)
    return found


def _drawn(
    file: Path, items: Sequence[Item], true: Sequence[Item], names: Mapping[int, str]
) -> Picture:
    """Return an image with the truth in thin lines, detections in thick ones with their labels."""
    items, caption = _worth_showing(items)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    scale = max(1, -(-SIDE // max(image.size)))
    image = image.resize((image.width * scale, image.height * scale))
    pen = ImageDraw.Draw(image)
    thick = max(3, image.width // 160)
    for item in true:
        box = _corners(item["bbox"], scale)
        pen.rectangle(box, outline=BLACK, width=3)
        pen.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline=WHITE, width=1)
    # the surest lie on top
    for item in reversed(items):
        tone = TONES[item["category_id"] % len(TONES)]
        pen.rectangle(_corners(item["bbox"], scale), outline=tone, width=thick)
    for item in reversed(items):
        _label(pen, item, names.get(item["category_id"], "?"), scale, image.size)
    truth = f"; thin: {len(true)} true" if true else ""
    return Picture(name=f"detections-{file.stem}", image=image, caption=f"{caption}{truth}")


def _corners(bbox: Sequence[float], scale: int) -> list[float]:
    x, y, w, h = (v * scale for v in bbox)
    return [x, y, x + max(w, 2), y + max(h, 2)]


def _label(
    pen: ImageDraw.ImageDraw, item: Item, name: str, scale: int, size: tuple[int, int]
) -> None:
    """Write class and score on a plate above the box, or inside where there is no room above."""
    tone, font = TONES[item["category_id"] % len(TONES)], font_for(size[0])
    words = f"{name} {100 * item['score']:.0f} %"
    left, _, right, bottom = pen.textbbox((0, 0), words, font=font)
    wide, high = right - left + 8, bottom + 6
    x = min(max(0.0, item["bbox"][0] * scale), max(0.0, size[0] - wide))
    y = item["bbox"][1] * scale - high
    y = y if y >= 0 else item["bbox"][1] * scale
    pen.rectangle((x, y, x + wide, y + high), fill=tone)
    pen.text((x + 4 - left, y + 2), words, fill=ink_on(tone), font=font)


def _worth_showing(items: Sequence[Item]) -> tuple[list[Item], str]:
    """Return the sure detections, or the surest few where none is sure, and a caption."""
    ranked = sorted(items, key=lambda item: -item["score"])
    sure = [item for item in ranked if item["score"] >= LEAST_SCORE]
    if sure:
        return sure, f"boxes above {LEAST_SCORE}: {len(sure)}"
    if not ranked:
        return [], "nothing detected"
    few = ranked[:SUREST]
    return few, f"no box above {LEAST_SCORE}; the {len(few)} surest of {len(ranked)}"
