"""Pictures of a run: image, prediction and ground truth side by side, with a legend."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from mimbench.scores.figures import Picture
from mimbench.system.errors import UserError
from transfer.segmentation.data import IGNORED, DataSource
from transfer.segmentation.framework import DATASETS
from transfer.segmentation.labels import read_labels

MARGIN, ROW, ENTRY = 8, 18, 180
"""Pixels between panels, of a legend line and of a legend entry."""
SMALLEST, SMALL = 256, 384
"""Pixels of a panel's longer side: the least of all, and the most of those left for the report."""
PAPER, INK = (255, 255, 255), (0, 0, 0)
UNLABELLED = (0, 0, 0)
FONT = ImageFont.load_default()

Labels = NDArray[np.uint8]


def show(
    model: nn.Module,
    cfg: Config,
    source: DataSource,
    count: int,
    *,
    largest: int | None = None,
) -> list[Picture]:
    """Return `count` pictures, spread evenly over the validation images.

    Args:
        model: The trained segmentor, on its device.
        cfg: The run's mmengine configuration.
        source: The data.
        count: How many.
        largest: Shrink panels to this longer side; None keeps the pictures' own.
    """
    if count < 1:
        raise UserError(f"--show {count}: ask for at least one picture")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    pairs = source.pairs("val")
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    found = []
    for index in chosen:
        image, labels = pairs[index]
        prediction = predict(model, dataset[int(index)])
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        truth = source.loaded(read_labels(labels))
        panels = compose(pixels, prediction, truth, source.palette, source.names, largest=largest)
        name = image.relative_to(source.root / source.folders["val"][0]).with_suffix("")
        found.append(Picture(name="_".join(name.parts), image=panels))
    return found


@torch.no_grad()
def predict(model: nn.Module, item: Mapping[str, Any]) -> Labels:
    """Return the predicted classes (H, W) of one item of the validation set, by sliding window."""
    model.eval()
    [sample] = cast(Any, model).test_step(pseudo_collate([item]))
    return sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)


def painted(labels: Labels, palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Return classes as colours (H, W, 3); what is not labelled is black."""
    colours = np.full((256, 3), UNLABELLED, dtype=np.uint8)
    colours[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return colours[labels]


def compose(
    image: NDArray[np.uint8],
    prediction: Labels,
    truth: Labels,
    palette: Sequence[Sequence[int]],
    names: Sequence[str],
    *,
    largest: int | None = None,
) -> Image.Image:
    """Return the panels 'image', 'prediction' and 'ground truth' over a legend of their classes."""
    if not image.shape[:2] == prediction.shape == truth.shape:
        raise ValueError(
            f"image, prediction and truth differ in size: {image.shape[:2]}, {prediction.shape}, "
            f"{truth.shape}"
        )
    width, height = _panel_size(image.shape[1], image.shape[0], largest)
    panels = {
        "image": image,
        "prediction": painted(prediction, palette),
        "ground truth": painted(truth, palette),
    }
    shown = _by_area(prediction, truth)
    entries = [(names[c], tuple(palette[c])) for c in shown] + [("not labelled", UNLABELLED)]
    columns = max(1, 3 * width // ENTRY)
    rows = -(-len(entries) // columns)
    canvas = Image.new(
        "RGB", (3 * width + 4 * MARGIN, ROW + height + 2 * MARGIN + rows * ROW), PAPER
    )
    draw = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels.items()):
        left = MARGIN + i * (width + MARGIN)
        draw.text((left, 2), title, fill=INK, font=FONT)
        smooth = title == "image" and height < image.shape[0]
        rule = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        canvas.paste(Image.fromarray(pixels).resize((width, height), rule), (left, ROW))
    step = (canvas.width - 2 * MARGIN) // columns
    for i, (name, colour) in enumerate(entries):
        left, top = MARGIN + (i % columns) * step, ROW + height + MARGIN + (i // columns) * ROW
        draw.rectangle((left, top, left + 12, top + 12), fill=colour, outline=INK)
        draw.text((left + 18, top), _cut(name, step - 22), fill=INK, font=FONT)
    return canvas


def _panel_size(width: int, height: int, largest: int | None) -> tuple[int, int]:
    """Return a panel's width and height: small pictures are enlarged by a whole number."""
    side = max(width, height)
    scale = max(1, -(-SMALLEST // side))
    if largest is None or side * scale <= largest:
        return width * scale, height * scale
    return max(1, round(width * largest / side)), max(1, round(height * largest / side))


def _by_area(prediction: Labels, truth: Labels) -> list[int]:
    """Return the classes that occur, those that cover most first."""
    counts = np.bincount(prediction.ravel(), minlength=256)
    counts += np.bincount(truth.ravel(), minlength=256)
    counts[IGNORED] = 0
    return [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]


def _cut(name: str, width: int) -> str:
    """Return a name that fits into so many pixels."""
    if FONT.getlength(name) <= width:
        return name
    while name and FONT.getlength(f"{name}..") > width:
        name = name[:-1]
    return f"{name}.."
