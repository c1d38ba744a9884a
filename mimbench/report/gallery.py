"""Pictures: what tasks left, detections drawn on their images, nearest neighbours."""

import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from mimbench.benchmarks.survey import child_environment
from mimbench.features.cards import embed, read_cards
from mimbench.report.markup import picture
from mimbench.scores.neighbours import nearest
from mimbench.scores.outcomes import DETECTION, TRUTH
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitWeights

logger = logging.getLogger(__name__)

PICTURES, PRETRAINED = "pictures", "model.safetensors"
MASKED = 4
MOST, QUERIES, NEIGHBOURS, LEAST_SCORE, SUREST = 8, 6, 5, 0.5, 3
BROADEST = 1024
"""Pixels across: a task's picture may hold several panels and a legend that should stay readable."""
TINTS = ["#e4572e", "#29a0b1", "#f3a712", "#6a4c93", "#76b041", "#d81e5b", "#1982c4", "#8d6e63"]


def left_behind(folder: Path) -> list[str]:
    """Return the pictures that a task wrote into its run's folder."""
    found = sorted((folder / PICTURES).glob("*.png")) + sorted((folder / PICTURES).glob("*.jpg"))
    return [picture(Image.open(path), path.stem, side=BROADEST) for path in found[:MOST]]


def masks(checkpoint: Path, weights: VitWeights, data: Path) -> list[str]:
    """Return masks, predicted loss and reconstructions of a pretraining checkpoint, if it is one.

    The pretraining application draws them, in a process of its own.
    """
    run = checkpoint.parent if (checkpoint.parent / PRETRAINED).is_file() else None
    if run is None and "decoder" not in weights.extras:
        # an encoder alone can fill nothing in, and nobody expects it to
        return []
    files = sorted((data / "val").glob("*/*"))
    images = files[:: max(1, len(files) // MASKED)][:MASKED]
    if not images or importlib.util.find_spec("pretrain.show") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "masks.png"
        command = [sys.executable, "-m", "pretrain.show", str(run or checkpoint), *map(str, images)]
        done = subprocess.run(
            [*command, "-o", str(out)], env=child_environment(), capture_output=True, check=False
        )
        if done.returncode or not out.is_file():
            logger.info(
                "%s: no masks to show: %s",
                checkpoint,
                done.stderr.decode(errors="replace").strip()[-300:],
            )
            return []
        with Image.open(out) as image:
            return [
                picture(
                    image,
                    "image, predicted loss, masks from easy to hard, reconstruction",
                    side=1400,
                )
            ]


def detections(folder: Path, data: Path) -> list[str]:
    """Return validation images with the detections of a run drawn on them."""
    path, truth = folder / DETECTION, data / TRUTH
    if not path.is_file() or not truth.is_file():
        return []
    content = json.loads(truth.read_text(encoding="utf-8"))
    names = {c["id"]: c["name"] for c in content["categories"]}
    found: dict[int, list[Mapping[str, Any]]] = {}
    for item in json.loads(path.read_text(encoding="utf-8")):
        found.setdefault(item["image_id"], []).append(item)
    images = sorted(content["images"], key=lambda i: i["id"])[:MOST]
    files = [(i, data / "val2017" / i["file_name"]) for i in images]
    return [_drawn(file, found.get(i["id"], []), names) for i, file in files if file.is_file()]


def _drawn(file: Path, items: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    items, caption = _worth_showing(items)
    image = Image.open(file).convert("RGB")
    scale = max(1, 320 // max(image.size))
    image = image.resize((image.width * scale, image.height * scale))
    pen = ImageDraw.Draw(image)
    for item in items:
        x, y, w, h = (v * scale for v in item["bbox"])
        tint = TINTS[item["category_id"] % len(TINTS)]
        pen.rectangle((x, y, x + w, y + h), outline=tint, width=2)
        pen.text(
            (x + 3, y + 1), f"{names.get(item['category_id'], '?')} {item['score']:.2f}", fill=tint
        )
    return picture(image, caption)


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


def neighbours(weights: VitWeights, data: Path, device: torch.device) -> list[str]:
    """Return a few validation images, each followed by its nearest training images."""
    size = weights.spec.image_size[0]
    cards = read_cards(data, size, classes=QUERIES * 4, bank=20, queries=1)
    picked = (
        torch.linspace(0, len(cards.queries) - 1, min(QUERIES, len(cards.queries))).round().long()
    )
    backbone = build_backbone(weights).to(device)
    bank = embed(backbone, cards.bank, device)["avg"]
    queries = embed(backbone, cards.queries[picked], device)["avg"]
    found = nearest(bank, queries, NEIGHBOURS)[1]
    rows = []
    for query, near in zip(picked, found, strict=True):
        label = cards.query_labels[query]
        right = int((cards.bank_labels[near] == label).sum())
        strip = torch.cat([cards.queries[query], *(cards.bank[i] for i in near)], dim=2)
        image = Image.fromarray(strip.permute(1, 2, 0).numpy())
        rows.append(
            picture(
                image.resize(
                    (image.width * max(1, 96 // size), image.height * max(1, 96 // size)),
                    Image.Resampling.NEAREST,
                ),
                f"query, then its neighbours: {right} of {NEIGHBOURS} of its class",
                side=900,
            )
        )
    return rows
