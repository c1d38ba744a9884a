"""Words and colours inside pictures: large enough on a phone, and clear to the colour-blind."""

from functools import cache
from typing import TypeAlias

from PIL import ImageFont

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
SHARE, LEAST = 30, 12
"""Letters are a thirtieth of a picture's width: 10 pixels where it is shown 320 across."""
TONES: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito's, without their black."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def font_for(width: int) -> Font:
    """Return the font of a picture that is so many pixels wide."""
    return _font(max(LEAST, -(-width // SHARE)))


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def ink_on(tone: Colour) -> Colour:
    """Return black or white, whichever stands out from a colour."""
    red, green, blue = (((v / 255 + 0.055) / 1.055) ** 2.4 for v in tone)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # where both contrasts are equal
    return BLACK if light > 0.179 else WHITE


def cut(name: str, width: float, font: Font) -> str:
    """Return a name that fits into so many pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(f"{name}..") > width:
        name = name[:-1]
    return f"{name}.."
