"""What published data sets hold: splits, landmarks with their judgements, queries and gallery, clips."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.data.lists import ImageList, Opener, joined
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A set for classification: what is trained on, what is scored."""

    train: ImageList
    """With the official validation part, where there is one."""
    test: ImageList
    validation: Ids | None = None
    """Places in `train` of the official validation part."""
    tags: tuple[NDArray[np.int8], NDArray[np.int8]] | None = None
    """Where an image may show several classes: (images, classes) of train and test, 1 shown, 0 not,
    -1 left out of that class's score."""

    def counts(self) -> Mapping[str, int]:
        """Return images of both parts, and classes."""
        return {
            "train": len(self.train),
            "test": len(self.test),
            "classes": len(self.train.classes),
        }


def second_half(splits: Splits) -> "QueryGallery":
    """Return the images of the second half of the classes, whatever their split, each against all others."""
    whole = joined(splits.train, splits.test)
    images = whole.subset(np.flatnonzero(whole.labels >= len(whole.classes) // 2))
    return QueryGallery(queries=images, gallery=images)


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Queries, a database, and which images of it show a query's landmark how well."""

    database: ImageList
    queries: ImageList
    boxes: NDArray[np.float64]
    """(queries, 4) left, top, right, bottom of the landmark in each query."""
    easy: tuple[Ids, ...]
    hard: tuple[Ids, ...]
    junk: tuple[Ids, ...]
    """Of each query: places in the database."""

    def counts(self) -> Mapping[str, int]:
        """Return images of the database, and queries."""
        return {"images": len(self.database), "queries": len(self.queries)}

    def cropped(self) -> ImageList:
        """Return the queries cut to their boxes."""
        stamps = tuple(
            f"{stamp}:{box.tolist()}"
            for stamp, box in zip(self.queries.stamps, self.boxes, strict=True)
        )
        return replace(self.queries, stamps=stamps, opener=Cut(self.queries.opener, self.boxes))


@dataclass(frozen=True)
class Cut:
    """Opens images cut to a box each."""

    opener: Opener
    boxes: NDArray[np.float64]

    def __call__(self, index: int) -> Image.Image:
        """Return the part of image `index` within its box."""
        left, top, right, bottom = self.boxes[index].tolist()
        return self.opener(index).crop((round(left), round(top), round(right), round(bottom)))


@dataclass(frozen=True, kw_only=True)
class QueryGallery:
    """Labelled queries and the gallery that is searched: the same list for leave-one-out."""

    queries: ImageList
    gallery: ImageList

    @property
    def leave_one_out(self) -> bool:
        """Whether every query is itself in the gallery."""
        return self.queries is self.gallery

    def counts(self) -> Mapping[str, int]:
        """Return images; of two lists those of each."""
        classes = len(np.unique(self.queries.labels))
        if self.leave_one_out:
            return {"images": len(self.queries), "classes": classes}
        return {"queries": len(self.queries), "gallery": len(self.gallery)}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video: its frames, and where the label maps of its objects lie."""

    name: str
    frames: tuple[Path, ...]
    labels: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Videos with label maps of every frame."""

    clips: tuple[Clip, ...]

    def counts(self) -> Mapping[str, int]:
        """Return videos and frames."""
        return {"sequences": len(self.clips), "frames": sum(len(c.frames) for c in self.clips)}


def require_files(root: Path, names: list[str], what: str) -> tuple[str, ...]:
    """Return the size and time of each file; an error names what is missing and how much.

    Args:
        root: Where they lie.
        names: Relative paths.
        what: Where the names come from, for the message.
    """
    stamps, missing = [], []
    for name in names:
        try:
            status = (root / name).stat()
        except OSError:
            missing.append(name)
            continue
        stamps.append(f"{status.st_size}:{status.st_mtime_ns}")
    if missing or not names:
        raise UserError(
            f"{what} names {len(names):,} images, {len(missing):,} of which are not in {root} "
            f"({first_few(missing, 3)}); unpack the set's archives there once more"
        )
    return tuple(stamps)
