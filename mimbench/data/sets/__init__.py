"""Published data sets beside ImageNet, COCO and ADE20K: every module of this folder reads some of them."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from mimbench.system.errors import UserError, did_you_mean

Score = Literal["overall", "per class", "tags"]
"""Share of right answers, its mean over classes, or the mean average precision of tags."""


class Content(Protocol):
    """What a set's reader returns: `Splits`, `Landmarks`, `QueryGallery` or `Clips`."""

    def counts(self) -> Mapping[str, int]:
        """Return how many there are of each part: the names are those of `PublishedSet.counts`."""
        ...


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """What is known of a set before anything is read."""

    title: str
    read: Callable[[Path], Content]
    """Reads its folder in any of the layouts; what is missing is an error that names it."""
    marks: tuple[str, ...]
    """A file or folder of each layout, or a pattern: one of them tells that a folder holds this set."""
    counts: Mapping[str, int]
    """As published."""
    obtain: str
    """How one comes by it; `FOLDER` is where it goes."""
    folders: tuple[str, ...] = field(default=())
    """What the archive's own folder is called, and other usual names."""
    score: Score = "overall"
    """How the set's own rule scores a classifier."""

    def looks_like(self, folder: Path) -> bool:
        """Return whether a folder has the outline of this set."""
        return folder.is_dir() and any(next(folder.glob(mark), None) for mark in self.marks)


@cache
def published() -> Mapping[str, PublishedSet]:
    """Return name -> set over the modules of this folder."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found: dict[str, PublishedSet] = {}
    for module in modules:
        found |= importlib.import_module(f"{__name__}.{module}").SETS
    return found


def find_set(name: str, root: Path) -> Path | None:
    """Return the folder below `root` that holds a set, under its own name or a usual one."""
    known = published()[name]
    places = [root / folder for folder in (name, *known.folders)]
    return next((place for place in places if known.looks_like(place)), None)


C = TypeVar("C", bound=Content)


def read_set(name: str, folder: Path, kind: type[C]) -> C:
    """Return what a set's folder holds.

    Args:
        name: A key of `published()`.
        folder: Where it lies.
        kind: What the caller works on; a set of another kind is refused.
    """
    if name not in published():
        raise UserError(f"no published set '{name}'" + did_you_mean(name, published()))
    content = published()[name].read(folder)
    if not isinstance(content, kind):
        held = type(content).__name__
        raise UserError(f"'{name}' holds {held}, and this benchmark works on {kind.__name__}")
    return content
