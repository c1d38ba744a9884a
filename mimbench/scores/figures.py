"""What a task shows beside its numbers: named values and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Named values that the report draws: scores by class, by layer..."""

    title: str
    values: Mapping[str, float]
    kind: Literal["bars", "line"] = "bars"
    """line: the names are numbers in order, such as layers."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for the report."""

    name: str
    """A file name without its suffix."""
    image: "Image.Image"
    caption: str = ""
