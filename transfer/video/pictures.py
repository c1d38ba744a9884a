"""Predicted masks over their frames."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.scores.figures import Picture
from mimbench.scores.lettering import BLACK, TONES

COLOURS = np.array([BLACK, *TONES], dtype=np.float64)
HEIGHT, SHOWN = 120, 5


def overlay(frame: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Image.Image:
    """Return a frame, small, with a colour over each object; background stays as it is."""
    colours = COLOURS[1 + (labels.astype(int) - 1) % (len(COLOURS) - 1)]
    mixed = np.where(labels[..., None] > 0, 0.45 * frame + 0.55 * colours, frame)
    image = Image.fromarray(mixed.astype(np.uint8))
    return image.resize((max(1, round(HEIGHT * image.width / image.height)), HEIGHT))


def strip(frames: Sequence[NDArray[np.uint8]], labels: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Return a few frames of a sequence side by side, evenly spread from its first to its last."""
    picked = np.unique(np.linspace(0, len(labels) - 1, SHOWN).astype(int)).tolist()
    tiles = [overlay(frames[i], labels[i]) for i in picked]
    canvas = Image.new("RGB", (sum(t.width for t in tiles), HEIGHT), "white")
    left = 0
    for tile in tiles:
        canvas.paste(tile, (left, 0))
        left += tile.width
    return canvas


def propagated(strips: Sequence[Image.Image]) -> Picture:
    """Return the picture: a sequence a row."""
    width = max(s.width for s in strips)
    canvas = Image.new("RGB", (width, len(strips) * HEIGHT), "white")
    for row, one in enumerate(strips):
        canvas.paste(one, (0, row * HEIGHT))
    caption = "the first frame's masks, and where similarity carried them"
    return Picture(name="propagated", image=canvas, caption=caption)
