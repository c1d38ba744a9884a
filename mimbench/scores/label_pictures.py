"""Label maps drawn around their picture: truth, prediction and what is wrong, with a legend.

A picture has few classes, so each picture gives its own the seven colours that the colour-blind tell
apart; where they run out, stripes and then dots follow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mimbench.data.label_maps import UNLABELLED
from mimbench.scores.lettering import BLACK, TONES, WHITE, Colour, cut, font_for

MARGIN, ENTRIES = 8, 10
"""Pixels between panels, and classes in a legend."""
SMALLEST, SMALL = 256, 312
"""Pixels of a panel's longer side: the least of all, and the most of those left for the report."""
REST: Colour = (150, 150, 150)
"""Classes that are too many for a colour each: they cover little."""
WRONG: Colour = (213, 94, 0)
Pixels = NDArray[np.uint8]
Classes = NDArray[np.integer[Any]]


def painted(labels: Classes, order: Sequence[int]) -> Pixels:
    """Return classes as colours (H, W, 3), those that cover most in plain ones.

    Args:
        labels: The map.
        order: Classes, those that cover most first.
    """
    pixels = np.full((*labels.shape, 3), REST, dtype=np.uint8)
    pixels[labels == UNLABELLED] = BLACK
    rows, columns = np.indices(labels.shape)
    stripes, dots = (rows + columns) // 4 % 2 == 0, (rows // 3 % 2 == 0) & (columns // 3 % 2 == 0)
    for place, label in enumerate(order[: 3 * len(TONES)]):
        mine = labels == label
        pixels[mine] = TONES[place % len(TONES)]
        pattern = (None, stripes, dots)[place // len(TONES)]
        if pattern is not None:
            pixels[mine & pattern] = BLACK
    return pixels


def errors(image: Pixels, prediction: Classes, truth: Classes) -> tuple[Pixels, float]:
    """Return the image in grey with wrong pixels coloured, and their share of the labelled ones."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    labelled = truth != UNLABELLED
    wrong = labelled & (prediction != truth)
    faint = 0.5 * grey + 0.5 * np.asarray(WHITE, dtype=np.float32)
    strong = 0.35 * grey + 0.65 * np.asarray(WRONG, dtype=np.float32)
    pixels = np.where(wrong[..., None], strong, faint).astype(np.uint8)
    return pixels, float(wrong.sum()) / max(1, int(labelled.sum()))


def compose(
    image: Pixels,
    prediction: Classes,
    truth: Classes,
    names: Sequence[str],
    *,
    largest: int | None = None,
) -> Image.Image:
    """Return image and truth over prediction and errors, with a legend of their classes below."""
    if not image.shape[:2] == prediction.shape == truth.shape:
        raise ValueError(
            f"image, prediction and truth differ in size: {image.shape[:2]}, {prediction.shape}, "
            f"{truth.shape}"
        )
    size = _panel_size(image.shape[1], image.shape[0], largest)
    order = by_area(prediction, truth)
    wrong, share = errors(image, prediction, truth)
    labels = [_enlarged(m, size) for m in (truth, prediction)]
    panels = {
        "image": _resized(image, size, smooth=size[1] < image.shape[0]),
        "ground truth": painted(labels[0], order),
        "prediction": painted(labels[1], order),
        f"wrong: {100 * share:.0f} %": _resized(wrong, size, smooth=False),
    }
    return _arranged(panels, size, _entries(order, names))


def _arranged(
    panels: Mapping[str, Pixels], size: tuple[int, int], entries: Sequence[tuple[str, Pixels]]
) -> Image.Image:
    """Return four panels with their titles, two by two, and the legend in two columns."""
    width, height = size
    broad = 2 * width + 3 * MARGIN
    font = font_for(broad)
    line = int(font.getbbox("Ag")[3]) + 6
    rows = -(-len(entries) // 2)
    canvas = Image.new("RGB", (broad, 2 * (line + height + MARGIN) + rows * line + MARGIN), WHITE)
    pen = ImageDraw.Draw(canvas)
    for i, (title, pixels) in enumerate(panels.items()):
        left = MARGIN + i % 2 * (width + MARGIN)
        top = i // 2 * (line + height + MARGIN)
        pen.text((left, top), cut(title, width, font), fill=BLACK, font=font)
        canvas.paste(Image.fromarray(pixels), (left, top + line))
    top = 2 * (line + height + MARGIN)
    for i, (name, swatch) in enumerate(entries):
        left, y = MARGIN + i % 2 * (width + MARGIN), top + i // 2 * line
        side = line - 6
        canvas.paste(
            Image.fromarray(swatch).resize((side, side), Image.Resampling.NEAREST), (left, y)
        )
        pen.rectangle((left, y, left + side - 1, y + side - 1), outline=BLACK)
        words = cut(name, width - side - 6, font)
        pen.text((left + side + 6, y - 1), words, fill=BLACK, font=font)
    return canvas


def _entries(order: Sequence[int], names: Sequence[str]) -> list[tuple[str, Pixels]]:
    """Return the legend's names with a piece of their colour or pattern."""
    piece = (16, 16)
    found = [
        (names[label], painted(np.full(piece, label, dtype=np.uint8), order))
        for label in order[:ENTRIES]
    ]
    if (rest := len(order) - ENTRIES) > 0:
        found.append((f"{rest} more", np.full((*piece, 3), REST, dtype=np.uint8)))
    return [*found, ("not labelled", np.zeros((*piece, 3), dtype=np.uint8))]


def _resized(pixels: Pixels, size: tuple[int, int], *, smooth: bool) -> Pixels:
    rule = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, rule))


def _enlarged(labels: Classes, size: tuple[int, int]) -> Classes:
    """Return a map in a panel's size: patterns are drawn into it afterwards, so that they stay fine."""
    small = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.NEAREST))


def _panel_size(width: int, height: int, largest: int | None) -> tuple[int, int]:
    """Return a panel's width and height: small pictures are enlarged by a whole number."""
    side = max(width, height)
    scale = max(1, -(-SMALLEST // side))
    if largest is None or side * scale <= largest:
        return width * scale, height * scale
    return max(1, round(width * largest / side)), max(1, round(height * largest / side))


def by_area(prediction: Classes, truth: Classes) -> list[int]:
    """Return the classes that occur, those that cover most first."""
    counts = np.bincount(prediction.ravel(), minlength=256)
    counts += np.bincount(truth.ravel(), minlength=256)
    counts[UNLABELLED] = 0
    return [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
