"""Pictures of a run: image, prediction and ground truth side by side, with a legend."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from mimbench.errors import UserError
from mimbench.files import atomic_path
from transfer.segmentation.data import IGNORED, DataSource
from transfer.segmentation.framework import DATASETS
from transfer.segmentation.labels import read_labels

logger = logging.getLogger(__name__)

MARGIN, ROW, SMALLEST = 8, 18, 256
"""Pixels between panels, of a legend line, and of the least panel height."""
PAPER, INK = (255, 255, 255), (0, 0, 0)
UNLABELLED = (0, 0, 0)

Labels = NDArray[np.uint8]


def show(model: nn.Module, cfg: Config, source: DataSource, folder: Path, count: int) -> list[Path]:
    """Write `count` pictures, spread evenly over the validation images; return their paths.

    Args:
        model: The trained segmentor, on its device.
        cfg: The run's mmengine configuration.
        source: The data.
        folder: Where the pictures go.
        count: How many.
    """
    if count < 1:
        raise UserError(f"--show {count}: ask for at least one picture")
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    pairs = source.pairs("val")
    chosen = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    paths = []
    for index in chosen:
        image, labels = pairs[index]
        prediction = predict(model, dataset[int(index)])
        with Image.open(image) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        truth = source.loaded(read_labels(labels))
        picture = compose(pixels, prediction, truth, source.palette, source.names)
        path = folder / f"{image.stem}.png"
        with atomic_path(path) as part:
            picture.save(part, format="PNG")
        paths.append(path)
    logger.info("wrote %d pictures to %s", len(paths), folder)
    return paths


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
) -> Image.Image:
    """Return the panels 'image', 'prediction' and 'ground truth' over a legend of their classes."""
    if not image.shape[:2] == prediction.shape == truth.shape:
        raise ValueError(
            f"image, prediction and truth differ in size: {image.shape[:2]}, {prediction.shape}, "
            f"{truth.shape}"
        )
    # small pictures are enlarged, so that they can be seen beside the legend's letters
    scale = max(1, -(-SMALLEST // image.shape[0]))
    panels = {
        "image": image,
        "prediction": painted(prediction, palette),
        "ground truth": painted(truth, palette),
    }
    height, width = image.shape[0] * scale, image.shape[1] * scale
    shown = [int(c) for c in np.union1d(prediction, truth) if c != IGNORED]
    columns = max(1, (3 * width) // 180)
    rows = -(-(len(shown) + 1) // columns)
    size = (3 * width + 4 * MARGIN, ROW + height + 2 * MARGIN + rows * ROW)
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
    for i, (title, pixels) in enumerate(panels.items()):
        left = MARGIN + i * (width + MARGIN)
        draw.text((left, 2), title, fill=INK, font=font)
        panel = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(panel, (left, ROW))
    entries = [(names[c], tuple(palette[c])) for c in shown] + [("not labelled", UNLABELLED)]
    step = (size[0] - 2 * MARGIN) // columns
    for i, (name, colour) in enumerate(entries):
        left, top = MARGIN + (i % columns) * step, ROW + height + MARGIN + (i // columns) * ROW
        draw.rectangle((left, top, left + 12, top + 12), fill=colour, outline=INK)
        draw.text((left + 18, top), name, fill=INK, font=font)
    return canvas
