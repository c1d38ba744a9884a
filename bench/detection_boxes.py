"""What the frozen ViT inside the detector knows of the sample objects, beside its random twin.

    python -m bench.detection_boxes CKPT [--image-size 128 96 64]

The checkpoint goes through the detector's own path: conversion, detectron2's ViT with windows, the
statistics of the recipe. Nothing is trained but a linear classifier on what it says about the true
boxes (pooled to 3 x 3), so the heads, which learn slowly, have no part in the answer. Chance is 10.
The penalty is chosen on a fifth of the training scenes. Seconds for each side, one thread.
"""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.modeling.backbone.vit import ViT
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torchvision.ops import roi_align

from mimbench.benchmarks.manifest import load_manifest
from mimbench.checkpoints.files import read_vit
from mimbench.sample import sample_root
from mimbench.system.config import from_mapping
from mimbench.system.options import Parser, add_checkpoint, add_option
from mimbench.vit.weights import VitWeights, random_weights
from transfer.detection import recipe
from transfer.detection.convert import convert
from transfer.detection.protocol import Config, plan

BATCH = 50
POOLED = 3
PENALTIES = (1e-3, 1e-2, 1e-1)


class Scenes(NamedTuple):
    """Pictures (n, 3, h, w) in 0..255, and their objects, crowds left out."""

    pictures: Tensor
    boxes: list[Tensor]
    """For each picture (k, 4): left, top, right, bottom."""
    labels: np.ndarray


def read_scenes(root: Path, split: str) -> Scenes:
    """Return one split of the sample scenes."""
    content = json.loads((root / f"annotations/instances_{split}.json").read_text())
    pictures, boxes, labels = [], [], []
    for picture in content["images"]:
        pixels = np.array(Image.open(root / split / picture["file_name"]).convert("RGB"))
        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1).float())
        own = [a for a in content["annotations"] if a["image_id"] == picture["id"]]
        own = [a for a in own if not a["iscrowd"]]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        boxes.append(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        labels += [a["category_id"] for a in own]
    return Scenes(torch.stack(pictures), boxes, np.array(labels))


def build(weights: VitWeights, config: Config) -> ViT:
    """Return detectron2's ViT with the weights, as the detector starts from it."""
    side = recipe.side_of(config, weights.spec.patch_size)
    converted = convert(weights, patch_size=None, side=side)
    planned = plan(config, weights.spec)
    lazy = recipe.build_model_config(config, planned, weights.spec, converted, classes=10)
    model = recipe.build_model(lazy, config, seed=0)
    recipe.fill(model, converted)
    return recipe.vit_of(model).eval()


@torch.no_grad()
def describe(vit: ViT, weights: VitWeights, scenes: Scenes, side: int) -> np.ndarray:
    """Return (objects, features): the map under each true box, pooled."""
    mean, std = (
        255 * torch.tensor(s)[:, None, None] for s in (weights.spec.mean, weights.spec.std)
    )
    scale = side / scenes.pictures.shape[-1] / weights.spec.patch_size
    found = []
    for first in range(0, len(scenes.pictures), BATCH):
        x = (scenes.pictures[first : first + BATCH] - mean) / std
        x = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        own = scenes.boxes[first : first + BATCH]
        pooled = roi_align(vit(x)["last_feat"], own, POOLED, scale, 2, aligned=True)
        found.append(pooled.flatten(1).numpy())
    return np.concatenate(found)


def accuracy(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the linear classifier's top-1 on the validation objects, in percent."""

    def fitted(penalty: float, x: np.ndarray, y: np.ndarray) -> Any:
        line = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=200))
        with warnings.catch_warnings():
            # some end at the last iteration, for the checkpoint and its twin alike
            warnings.simplefilter("ignore", ConvergenceWarning)
            return line.fit(x, y)

    x, y = train
    cut = 4 * len(y) // 5
    best = max(PENALTIES, key=lambda c: fitted(c, x[:cut], y[:cut]).score(x[cut:], y[cut:]))
    return 100 * float(fitted(best, x, y).score(*val))


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line for each side of the picture."""
    parser = Parser(prog="python -m bench.detection_boxes", description=__doc__)
    add_checkpoint(parser)
    add_option(parser, "--image-size", "default: 128 96 64", nargs="+", default=[128, 96, 64])
    args = parser.parse_args(argv)
    root = sample_root() / "coco"
    _, mapping = load_manifest().recipe("coco-vitdet-12", "demo")
    demo = from_mapping(Config, {**mapping, "data": root})
    train, val = read_scenes(root, "train2017"), read_scenes(root, "val2017")
    weights = read_vit(args.checkpoint, who="this measurement")
    rivals = {"checkpoint": weights, "random twin": random_weights(weights.spec, seed=0)}
    for side in args.image_size:
        config = replace(demo, image_size=side)
        line = f"{side} px"
        for name, who in rivals.items():
            vit = build(who, config)
            x, y = (describe(vit, who, scenes, side) for scenes in (train, val))
            line += f"   {name} {accuracy((x, train.labels), (y, val.labels)):.1f}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
