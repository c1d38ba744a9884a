"""Queries and what was retrieved for them, framed by whether it is right."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from mimbench.data.lists import ImageList
from mimbench.scores.figures import Picture
from mimbench.scores.lettering import TONES

SIDE, FRAME, GAP = 96, 4, 12
RIGHT, WRONG = TONES[4], TONES[5]
"""Blue and orange, which the colour-blind tell apart."""
LEFT_OUT, QUERY = (150, 150, 150), (30, 30, 30)
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class RetrievedRow:
    """A query and its nearest images, each with the colour of its frame."""

    query: int
    found: Sequence[tuple[int, tuple[int, int, int]]]


def retrieved(
    rows: Sequence[RetrievedRow], queries: ImageList, gallery: ImageList, caption: str
) -> Picture:
    """Return the picture: a query a row, the nearest image first."""
    side = SIDE + 2 * FRAME
    wide = max((len(row.found) for row in rows), default=0)
    canvas = Image.new("RGB", ((wide + 1) * side + GAP, max(1, len(rows)) * side), "white")
    for line, row in enumerate(rows):
        canvas.paste(_tile(queries, row.query, QUERY), (0, line * side))
        for column, (index, colour) in enumerate(row.found):
            place = (GAP + (column + 1) * side, line * side)
            canvas.paste(_tile(gallery, index, colour), place)
    return Picture(name="retrieved", image=canvas, caption=caption)


def _tile(images: ImageList, index: int, colour: tuple[int, int, int]) -> Image.Image:
    small = ImageOps.pad(images.open(index), (SIDE, SIDE), color=(255, 255, 255))
    return ImageOps.expand(small, border=FRAME, fill=colour)
