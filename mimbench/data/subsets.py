"""Parts of a training set: fixed by a seed or an order, or read from a published list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.data.lists import ImageList
from mimbench.system.errors import UserError
from mimbench.system.seeds import sequence_generator

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which training images are used: all, a number or a share of each class, or a published list."""

    per_class: int | None = None
    fraction: float | None = None
    file: Path | None = None
    """Text file of image names, one a line (SimCLR's 1percent.txt, 10percent.txt)."""
    first: bool = False
    """With per_class: the first images in order rather than random ones."""
    draw: int = 0
    """Which of the fixed random subsets; the run's seed does not move it."""

    def __post_init__(self) -> None:
        named = [n for n in ("per_class", "fraction", "file") if getattr(self, n) is not None]
        if len(named) > 1:
            raise ValueError(f"a subset by {' and by '.join(named)}; choose one")

    def of(self, images: ImageList) -> ImageList:
        """Return the part of the list."""
        if self.file is not None:
            return images.subset(read_list(self.file, images))
        if self.fraction is not None:
            return images.subset(draw_fraction(images.labels, self.fraction, draw=self.draw))
        if self.per_class is None:
            return images
        if self.first:
            return images.subset(first_per_class(images.labels, self.per_class))
        return images.subset(draw_per_class(images.labels, self.per_class, draw=self.draw))


def first_per_class(labels: NDArray[np.int64], count: int, *, offset: int = 0) -> Indices:
    """Return `count` indices of each class, in the list's order from `offset` on."""
    picked = []
    for label, rows in _by_class(labels):
        if len(rows) < offset + count:
            raise UserError(
                f"class {label} has {len(rows)} images, fewer than the {offset + count} needed "
                f"for {count} images from place {offset}"
            )
        picked.append(rows[offset : offset + count])
    return np.sort(np.concatenate(picked))


def draw_per_class(labels: NDArray[np.int64], count: int, *, draw: int) -> Indices:
    """Return `count` random indices of each class; draw i is always the same."""
    rng = sequence_generator(draw, count)
    picked = []
    for label, rows in _by_class(labels):
        if len(rows) < count:
            raise UserError(f"class {label} has {len(rows)} images, fewer than {count} a class")
        picked.append(rng.choice(rows, size=count, replace=False))
    return np.sort(np.concatenate(picked))


def draw_fraction(labels: NDArray[np.int64], fraction: float, *, draw: int) -> Indices:
    """Return a random share of each class, at least one image; draw i is always the same."""
    if not 0 < fraction <= 1:
        raise UserError(f"fraction {fraction} is not within 0 and 1")
    rng = sequence_generator(draw, round(fraction * 1e6))
    picked = [
        rng.choice(rows, size=max(1, round(fraction * len(rows))), replace=False)
        for _, rows in _by_class(labels)
    ]
    return np.sort(np.concatenate(picked))


def hold_out(labels: NDArray[np.int64], share: float, *, seed: int) -> tuple[Indices, Indices]:
    """Return (kept, held out): a random share of each class with at least two images is held out."""
    rng = sequence_generator(seed, 7919)
    held = []
    for _, rows in _by_class(labels):
        size = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rng.choice(rows, size=size, replace=False))
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


def read_list(path: Path, images: ImageList) -> Indices:
    """Return the indices of the images that a text file lists, one name (with or without class) a line.

    SimCLR's 1percent.txt and 10percent.txt name files without their class folder.
    """
    try:
        wanted = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the subset list {path}: {error}") from error
    wanted = [name for name in wanted if name]
    known: dict[str, int] = {}
    doubled: set[str] = set()
    for index, name in enumerate(images.names):
        for form in {name, name.rsplit("/", 1)[-1]}:
            if known.setdefault(form, index) != index:
                doubled.add(form)
    check_list(path, wanted, known, doubled)
    return np.array(sorted({known[name] for name in wanted}), dtype=np.int64)


def check_list(path: Path, wanted: Sequence[str], known: dict[str, int], doubled: set[str]) -> None:
    """Raise unless every listed name is one image and the list is not empty."""
    unknown = [name for name in wanted if name not in known]
    if not wanted or unknown:
        raise UserError(
            f"{path} lists {len(wanted)} images, {len(unknown)} of them not in the training set"
            + (f" (first: {unknown[0]})" if unknown else "")
            + "; expected file names of that set"
        )
    unclear = [name for name in wanted if name in doubled]
    if unclear:
        raise UserError(
            f"{path}: '{unclear[0]}' is the name of several images; "
            "write it as <class>/<file> to say which"
        )


def _by_class(labels: NDArray[np.int64]) -> list[tuple[int, Indices]]:
    order = np.argsort(labels, kind="stable")
    values, starts = np.unique(labels[order], return_index=True)
    parts = np.split(order, starts[1:])
    return [(int(v), rows) for v, rows in zip(values, parts, strict=True)]
