"""Labelled image lists: each image once, with its own label; and lists from folders."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.system.listing import first_few

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"})


UNDECODABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for a damaged image, by kind of file and of damage."""


class Opener(Protocol):
    """Gives the decoded RGB image at an index of a source, or raises."""

    def __call__(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        ...


@dataclass(frozen=True)
class FolderOpener:
    """Opens files below a folder."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        with Image.open(self.folder / self.names[index]) as image:
            return image.convert("RGB")


@dataclass(frozen=True, kw_only=True)
class ImageList:
    """Images in a fixed order, each with its label: what every classification task reads."""

    names: tuple[str, ...]
    """Paths relative to the split's folder, or the names that a timm source gives."""
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    stamps: tuple[str, ...]
    """What tells a changed image from the old one: size and time of the file."""
    where: str
    opener: Opener
    positions: tuple[int, ...] | None = None
    """Indices into the source, where this is a subset."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, labels, classes and stamps, in order."""
        return value_digest([self.names, self.labels.tolist(), self.classes, self.stamps])

    def open(self, index: int) -> Image.Image:
        """Return image `index` in RGB; a damaged file is an error that names it."""
        source = index if self.positions is None else self.positions[index]
        try:
            return self.opener(source)
        except UNDECODABLE as error:
            raise UserError(
                f"cannot decode {self.where}/{self.names[index]}: {error}; every image is scored "
                "with its own label, so none is skipped: replace the file, or remove it"
            ) from error

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> "ImageList":
        """Return the list of the images at `indices`, with the same classes."""
        picked = [int(i) for i in indices]
        own = self.positions
        return replace(
            self,
            names=tuple(self.names[i] for i in picked),
            labels=self.labels[picked],
            stamps=tuple(self.stamps[i] for i in picked),
            positions=tuple(picked if own is None else (own[i] for i in picked)),
        )

    def relabel(self, labels: NDArray[np.int64]) -> "ImageList":
        """Return the same images under other labels (for checks with shuffled labels)."""
        if labels.shape != self.labels.shape:
            raise ValueError(f"{labels.shape} labels for {len(self)} images")
        return replace(self, labels=labels.astype(np.int64))


def check_classes(train: ImageList, val: ImageList) -> None:
    """Raise unless both lists have the same classes, two or more; the message lists the difference."""
    if len(train.classes) == len(val.classes) == 1:
        raise UserError(
            f"{train.where} and {val.where} have one class alone, '{train.classes[0]}': every answer "
            "is right, so 100 % would say nothing; give each split two class folders or more"
        )
    if train.classes == val.classes:
        return
    only = {
        "train": sorted(set(train.classes) - set(val.classes)),
        "val": sorted(set(val.classes) - set(train.classes)),
    }
    parts = [f"only in {split}: {first_few(names, 20)}" for split, names in only.items() if names]
    raise UserError(
        f"{train.where} has {len(train.classes)} classes, {val.where} has {len(val.classes)}, and "
        f"they differ; {'; '.join(parts) or 'same names in another order'}; "
        "each class needs a folder in both"
    )


@dataclass(frozen=True)
class JoinedOpener:
    """Opens images of one source, then of another."""

    first: Opener
    count: int
    second: Opener

    def __call__(self, index: int) -> Image.Image:
        """Return image `index` of both."""
        return self.first(index) if index < self.count else self.second(index - self.count)


def joined(first: ImageList, second: ImageList) -> ImageList:
    """Return both lists as one; their classes must be the same."""
    check_classes(first, second)
    return replace(
        first,
        names=(*first.names, *second.names),
        labels=np.concatenate([first.labels, second.labels]),
        stamps=(*first.stamps, *second.stamps),
        opener=JoinedOpener(_Placed(first), len(first), _Placed(second)),
        positions=None,
    )


@dataclass(frozen=True)
class _Placed:
    images: ImageList

    def __call__(self, index: int) -> Image.Image:
        own = self.images.positions
        return self.images.opener(index if own is None else own[index])


def read_folder(data: Path, split: str, *, without: Sequence[str] = ()) -> ImageList:
    """Return the images of `data`/`split`/<class>/**, sorted by class and path.

    Args:
        data: The data set's folder.
        split: The part's.
        without: Class folders that are left out.
    """
    folder = data / split
    if not folder.is_dir():
        there = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
        raise UserError(
            f"no folder '{split}' in {data} (folders there: {first_few(there, 10)}); "
            f"expected {data}/{split}/<class>/<image>"
        )
    classes = sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir() and p.name[0] != "." and p.name not in without
    )
    if not classes:
        raise UserError(f"no class folders in {folder}; expected {folder}/<class>/<image>")
    names: list[str] = []
    labels: list[int] = []
    stamps: list[str] = []
    for label, name in enumerate(classes):
        files = sorted(_walk(folder / name, name))
        if not files:
            raise UserError(f"class folder {folder / name} holds no image; remove or fill it")
        names += [path for path, _ in files]
        stamps += [stamp for _, stamp in files]
        labels += [label] * len(files)

    return ImageList(
        names=tuple(names),
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(classes),
        stamps=tuple(stamps),
        where=str(folder),
        opener=FolderOpener(folder, tuple(names)),
    )


def _walk(folder: Path, prefix: str) -> list[tuple[str, str]]:
    """Return (relative path, stamp) of every image below a folder."""
    found: list[tuple[str, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}/{entry.name}"
            if entry.is_dir():
                found += _walk(Path(entry.path), path)
            elif Path(entry.name).suffix.lower() in SUFFIXES and entry.name[0] != ".":
                status = entry.stat()
                found.append((path, f"{status.st_size}:{status.st_mtime_ns}"))
    return found
