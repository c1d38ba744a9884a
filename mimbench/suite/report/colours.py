"""Colours and line styles of the rows, the same in the page, in figures for a paper and in pictures.

They are Okabe and Ito's, darkened on light paper and lightened on dark until they stand out at 3:1, the
least that graphics need. A row is known by its symbol and its dashes too, never by colour alone.
"""

from dataclasses import dataclass

LIGHT = ("#0072b2", "#c55200", "#007f5c", "#a8518a", "#8a6100", "#2b84b5")
DARK = ("#56b4e9", "#ff8a4c", "#35c79a", "#e39ac4", "#f0e442", "#e69f00")
TWIN_LIGHT, TWIN_DARK = "#5d6267", "#a3a8ac"
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
"""Of a row's lines, in pixels or points."""
SYMBOLS = (
    "M-5,0A5,5 0 1 1 5,0A5,5 0 1 1 -5,0Z",
    "M-4.4,-4.4H4.4V4.4H-4.4Z",
    "M0,-5.6L5.4,4H-5.4Z",
    "M0,5.6L5.4,-4H-5.4Z",
    "M-2,-5.4H2V-2H5.4V2H2V5.4H-2V2H-5.4V-2H-2Z",
    "M-4.6,-2.6L0,-5.4L4.6,-2.6V2.6L0,5.4L-4.6,2.6Z",
)
"""Outlines around (0, 0): circle, square, triangles, cross, hexagon."""
MARKERS = ("o", "s", "^", "v", "P", "h")
"""The same symbols as matplotlib calls them."""
DIAMOND, DIAMOND_MARKER = "M0,-6L5,0L0,6L-5,0Z", "D"
"""Published rows."""


def colour(index: int) -> str:
    """Return the colour of a row in the page; it follows the reader's choice of light or dark."""
    return f"var(--c{index % len(LIGHT)})"


def dashes(index: int) -> str:
    """Return the dashes of a row's lines, '' where they are whole."""
    return DASHES[index % len(DASHES)]


def symbol(index: int) -> str:
    """Return the outline of a row's symbol."""
    return SYMBOLS[index % len(SYMBOLS)]


def variables() -> str:
    """Return the rows' colours as style rules, for light and for dark screens."""
    # paper is white, whatever the screen was
    dark = f"@media screen and (prefers-color-scheme:dark){{{_rule(DARK, TWIN_DARK)}}}"
    return light_variables() + dark


def light_variables() -> str:
    """Return the rows' colours for white paper, whatever the reader's choice."""
    return _rule(LIGHT, TWIN_LIGHT)


def _rule(tones: tuple[str, ...], twin: str) -> str:
    named = "".join(f"--c{i}:{tone};" for i, tone in enumerate(tones))
    return f":root{{{named}--twin:{twin}}}"


@dataclass(frozen=True)
class RowLook:
    """How a row of the table looks in every figure."""

    label: str
    index: int
    twin: bool = False
    """Random weights: grey and hollow."""
    model: str = ""
    """Architecture."""

    @property
    def tone(self) -> str:
        """Colour in the page."""
        return "var(--twin)" if self.twin else colour(self.index)

    @property
    def fill(self) -> str:
        """Class of its symbol."""
        return "hollow" if self.twin else "full"
