"""Is the sample data learnable? A tiny ViT, briefly trained, against chance and cheap baselines.

    python -m bench.sample_learnability [--out DIR] [--only cards scenes boxes] [--seed 0]

One thread; about six minutes. Each task is also run broken on purpose (targets of other pictures,
a dead patch embedding), which must fall to chance: else the task would pass whatever the backbone.
Detection and segmentation proper are proven by the tests of those tasks; what is shown here is that
the files hold the signal.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import hog
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from bench.tiny_vit import (
    IGNORED,
    DenseHead,
    accuracy,
    fit,
    kill_patch_embedding,
    predict,
    shuffled,
    tiny_vit,
)
from mimbench.sample import sample_root
from mimbench.sample.ade import FIRST_DIGIT_ID, TEXTURE_IDS
from mimbench.sample.coco import CATEGORY_IDS
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)

CARD_STEPS = 800  # of 64 pictures: 8.5 epochs, a minute
SCENE_STEPS = 400  # of 16 pictures: 8 epochs


class LearnabilityRow(NamedTuple):
    """One line of the report."""

    task: str
    method: str
    metric: str
    value: float
    chance: float


def to_tensor(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Return pictures as (n, 3, h, w), roughly standardised."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def read(path: Path) -> NDArray[np.uint8]:
    """Read a picture or a label map."""
    with Image.open(path) as picture:
        return np.asarray(picture)


# Classification


def read_cards(root: Path, split: str) -> tuple[list[NDArray[np.uint8]], Tensor]:
    """Read the ImageFolder layout."""
    paths = sorted((root / "classification" / split).glob("*/*.png"))
    return [read(path) for path in paths], torch.tensor([int(path.parent.name) for path in paths])


def classify_cards(root: Path, seed: int) -> Iterator[LearnabilityRow]:
    """Measure k-NN on pixels and on HOG, and the ViT: whole, with other labels, with dead input."""
    train, labels = read_cards(root, "train")
    val, truth = read_cards(root, "val")
    row = LearnabilityRow("classification", "", "top-1", 0.0, 0.1)
    for name, describe in (("k-NN on grey pixels", grey_pixels), ("k-NN on HOG", oriented)):
        nearest = KNeighborsClassifier(20, weights="distance")
        nearest.fit([describe(card) for card in train], labels)
        found = nearest.score([describe(card) for card in val], truth)
        yield row._replace(method=name, value=float(found))
    images, unseen = to_tensor(train), to_tensor(val)
    torch.manual_seed(seed)
    yield row._replace(
        method="untrained ViT", value=accuracy(tiny_vit(32, 8, 10).eval(), unseen, truth)
    )
    for name, model, targets in (
        ("ViT from scratch", tiny_vit(32, 8, 10), labels),
        ("broken: labels of other pictures", tiny_vit(32, 8, 10), shuffled(labels, seed)),
        ("broken: dead patch embedding", kill_patch_embedding(tiny_vit(32, 8, 10)), labels),
    ):
        fit(model, images, targets, steps=CARD_STEPS, seed=seed)
        yield row._replace(method=name, value=accuracy(model, unseen, truth))


def grey_pixels(card: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Describe a card by its brightness, without mean and scale."""
    grey = card.mean(axis=2).ravel()
    return (grey - grey.mean()) / grey.std()


def oriented(card: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Describe a card by histograms of oriented gradients."""
    return hog(card.mean(axis=2), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))


# Objects in scenes: from the COCO layout


def read_boxes(root: Path, split: str, side: int = 32) -> tuple[Tensor, Tensor]:
    """Cut every object that is no crowd out of its picture by its box, with a margin."""
    instances = json.loads((root / f"coco/annotations/instances_{split}2017.json").read_text())
    files = {picture["id"]: picture["file_name"] for picture in instances["images"]}
    crops, labels = [], []
    for annotation in instances["annotations"]:
        if annotation["iscrowd"]:
            continue
        x, y, width, height = annotation["bbox"]
        half = 0.6 * max(width, height)
        corners = (x + width / 2 - half, y + height / 2 - half, 2 * half)
        with Image.open(root / f"coco/{split}2017" / files[annotation["image_id"]]) as picture:
            left, top, span = corners
            box = (left, top, left + span, top + span)
            square = (side, side)
            crop = picture.transform(square, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
        crops.append(np.asarray(crop))
        labels.append(CATEGORY_IDS.index(annotation["category_id"]))
    return to_tensor(crops), torch.tensor(labels)


def classify_boxes(root: Path, seed: int) -> Iterator[LearnabilityRow]:
    """Name the objects in the true boxes."""
    images, labels = read_boxes(root, "train")
    unseen, truth = read_boxes(root, "val")
    row = LearnabilityRow("objects in true boxes (COCO)", "", "top-1", 0.0, 0.1)
    for name, targets in (
        ("ViT from scratch", labels),
        ("broken: labels of other objects", shuffled(labels, seed)),
    ):
        torch.manual_seed(seed)
        model = fit(tiny_vit(32, 8, 10), images, targets, steps=CARD_STEPS, seed=seed)
        yield row._replace(method=name, value=accuracy(model, unseen, truth))


# Segmentation: from the ADE20K layout

SCENE_CELL = 4
STUFF = len(TEXTURE_IDS)


def read_scenes(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read pictures and label maps: textures 0 to 2, digits 3 to 12, every fourth pixel."""
    table = np.full(256, IGNORED)
    table[list(TEXTURE_IDS)] = range(STUFF)
    table[FIRST_DIGIT_ID : FIRST_DIGIT_ID + 10] = range(STUFF, STUFF + 10)
    pictures = sorted((root / "ade/images" / split).glob("*.jpg"))
    maps = [read(root / "ade/annotations" / split / f"{path.stem}.png") for path in pictures]
    cells = np.stack([table[labels][2::SCENE_CELL, 2::SCENE_CELL] for labels in maps])
    return to_tensor([read(path) for path in pictures]), torch.from_numpy(cells)


def segment_scenes(root: Path, seed: int) -> Iterator[LearnabilityRow]:
    """Label pixels: mean IoU of textures and of digits apart, and IoU of any digit at all."""
    images, labels = read_scenes(root, "training")
    unseen, truth = read_scenes(root, "validation")
    commonest = int(labels[labels != IGNORED].bincount().argmax())
    constant = segmentation_scores(torch.full_like(truth, commonest), truth)
    for name, targets in (
        ("ViT from scratch, linear head", labels),
        ("broken: label maps of other pictures", shuffled(labels, seed)),
    ):
        torch.manual_seed(seed)
        model = fit(
            DenseHead(128, 8, 13, SCENE_CELL), images, targets, steps=SCENE_STEPS, seed=seed
        )
        scores = segmentation_scores(predict(model, unseen), truth)
        for metric, value in scores.items():
            yield LearnabilityRow("segmentation (ADE20K)", name, metric, value, constant[metric])


def segmentation_scores(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Return pixel accuracy and the IoUs over the labelled pixels."""
    counted = truth != IGNORED
    found, truth = found[counted], truth[counted]
    pairs = torch.bincount(truth * 13 + found, minlength=169).view(13, 13).double()
    union = pairs.sum(0) + pairs.sum(1) - pairs.diag()
    iou = pairs.diag() / union.clamp(min=1)
    digit_found, digit_truth = found >= STUFF, truth >= STUFF
    any_digit = (digit_found & digit_truth).sum() / (digit_found | digit_truth).sum().clamp(min=1)
    return {
        "pixel accuracy": (pairs.diag().sum() / pairs.sum()).item(),
        "mIoU, 3 textures": iou[:STUFF].mean().item(),
        "mIoU, 10 digits": iou[STUFF:].mean().item(),
        "IoU, any digit": any_digit.item(),
    }


TASKS: dict[str, Callable[[Path, int], Iterator[LearnabilityRow]]] = {
    "cards": classify_cards,
    "boxes": classify_boxes,
    "scenes": segment_scenes,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the tasks and print the table in Markdown."""
    parser = Parser(prog="python -m bench.sample_learnability", description=__doc__)
    add_option(parser, "--data", "default: the sample data")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all"
    )
    add_option(parser, "--seed")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    root = sample_root(args.data)
    lines = ["| task | method | metric | value | chance |", "|---|---|---|---|---|"]
    begin = time.perf_counter()
    for name in args.tasks:
        for row in TASKS[name](root, args.seed):
            line = (
                f"| {row.task} | {row.method} | {row.metric} | {row.value:.3f} | {row.chance:.3f} |"
            )
            logger.info("%4.0f s %s", time.perf_counter() - begin, line)
            lines.append(line)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
