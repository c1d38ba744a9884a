"""Label maps drawn beside their picture: prediction and ground truth in colours, with a legend."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mimbench.data.label_maps import UNLABELLED, Labels

MARGIN, ROW, ENTRY = 8, 18, 180
"""Pixels between panels, of a legend line and of a legend entry."""
SMALLEST, SMALL = 256, 384
"""Pixels of a panel's longer side: the least of all, and the most of those left for the report."""
PAPER, INK = (255, 255, 255), (0, 0, 0)
BLACK = (0, 0, 0)
FONT = ImageFont.load_default()


def painted(labels: Labels, palette: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Return classes as colours (H, W, 3); what is not labelled is black."""
    colours = np.full((256, 3), BLACK, dtype=np.uint8)
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
    entries = [(names[c], tuple(palette[c])) for c in shown] + [("not labelled", BLACK)]
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
    counts[UNLABELLED] = 0
    return [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]


def _cut(name: str, width: int) -> str:
    """Return a name that fits into so many pixels."""
    if FONT.getlength(name) <= width:
        return name
    while name and FONT.getlength(f"{name}..") > width:
        name = name[:-1]
    return f"{name}.."
