"""Pictures with label maps: ADE20K, VOC, or folders of one's own; read without any framework."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimbench.data.lists import SUFFIXES, FolderOpener, ImageList
from mimbench.system.config import later
from mimbench.system.errors import UserError

Labels = NDArray[np.uint8]
Split = Literal["train", "val"]
UNLABELLED = 255
"""What every value that is no class becomes."""
ADE_CLASSES = 150
VOC_NAMES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


@dataclass(frozen=True, kw_only=True)
class LabelLayout:
    """Where pictures and label maps are, and what their values mean; ADE20K's by default."""

    train_images: str = "images/training"
    train_labels: str = "annotations/training"
    val_images: str = "images/validation"
    val_labels: str = "annotations/validation"
    train_list: str = ""
    """File under the data's folder with a picture's stem on each line; '' takes every picture."""
    val_list: str = ""
    classes: str = ""
    """'' = ADE20K's 150, `voc` = VOC's 21, else a file with a class name on each line."""
    reduce_zero_label: bool = True
    """Label 0 means 'not labelled', classes start at 1."""
    ignore_index: int = 255
    """Label in the files that means 'not labelled'."""
    joined: tuple[tuple[int, ...], ...] = later(())
    """Groups of labels in the files that count as one class, the first of the group."""


VOC = LabelLayout(
    train_images="JPEGImages",
    train_labels="SegmentationClassAug",
    val_images="JPEGImages",
    val_labels="SegmentationClassAug",
    train_list="ImageSets/Segmentation/trainaug.txt",
    val_list="ImageSets/Segmentation/val.txt",
    classes="voc",
    reduce_zero_label=False,
)


@dataclass(frozen=True, kw_only=True)
class LabelMaps:
    """The pictures of a split, each with its label map."""

    images: ImageList
    files: tuple[Path, ...]
    names: tuple[str, ...]
    first: int
    """Value of the first class in the files."""
    ignore_index: int
    joined: tuple[tuple[int, ...], ...] = ()

    @property
    def ignored(self) -> tuple[int, ...]:
        """Values that mean 'not labelled', as `read` returns them."""
        return (0, UNLABELLED) if self.first else (UNLABELLED,)

    @cached_property
    def stamps(self) -> list[str]:
        """What tells a changed label map from the old one."""
        found = (path.stat() for path in self.files)
        return [f"{status.st_size}:{status.st_mtime_ns}" for status in found]

    def open(self, index: int) -> Image.Image:
        """Return the label map of a picture as an image of one 8-bit channel."""
        path = self.files[index]
        try:
            with Image.open(path) as image:
                if image.mode not in ("L", "P"):
                    raise UserError(
                        f"{path} has mode {image.mode}; a label map has one 8-bit channel (L or P)"
                    )
                image.load()
                # a palette says how to paint labels, not what they are
                return Image.fromarray(np.asarray(image))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"cannot read the label map {path}: {error}") from error

    def settle(self, labels: Labels, index: int) -> Labels:
        """Return the values of a label map with every ignored one 255; refuse those that are no class."""
        last = self.first + len(self.names) - 1
        stray = (labels > last) & (labels != self.ignore_index)
        if stray.any():
            raise UserError(
                f"{self.files[index]} holds label {int(labels[stray][0])}; with {len(self.names)} "
                f"classes labels run from {self.first} to {last}, and {self.ignore_index} is not "
                "labelled; check reduce_zero_label and the class list"
            )
        settled = np.where(labels == self.ignore_index, UNLABELLED, labels).astype(np.uint8)
        for group in self.joined:
            settled[np.isin(settled, group)] = group[0]
        return settled

    def subset(self, indices: NDArray[np.int64]) -> "LabelMaps":
        """Return some of the pictures."""
        return LabelMaps(
            images=self.images.subset(indices),
            files=tuple(self.files[int(i)] for i in indices),
            names=self.names,
            first=self.first,
            ignore_index=self.ignore_index,
            joined=self.joined,
        )


def class_indices(labels: Labels, first: int) -> Labels:
    """Return classes from 0 and 255 for what is not labelled, from values as `LabelMaps` reads them."""
    if not first:
        return labels
    return np.where((labels == 0) | (labels == UNLABELLED), UNLABELLED, labels - 1).astype(np.uint8)


def read_label_maps(data: Path, layout: LabelLayout, split: Split) -> LabelMaps:
    """Return a split; missing folders, pictures and label maps are errors that name them."""
    folders = {kind: data / getattr(layout, f"{split}_{kind}") for kind in ("images", "labels")}
    for folder in folders.values():
        if not folder.is_dir():
            raise UserError(
                f"{data} has no folder '{folder.relative_to(data)}'; name yours with "
                f"{split}_images= and {split}_labels="
            )
    listed = getattr(layout, f"{split}_list")
    pictures = _listed(data / listed, folders["images"]) if listed else _every(folders["images"])
    files = tuple(
        (folders["labels"] / p.relative_to(folders["images"])).with_suffix(".png") for p in pictures
    )
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} pictures in {folders['images']} have no label map, for "
            f"example {missing[0]}"
        )
    names = tuple(str(p.relative_to(data)) for p in pictures)
    found = [p.stat() for p in pictures]
    return LabelMaps(
        images=ImageList(
            names=names,
            labels=np.zeros(len(names), dtype=np.int64),
            classes=("picture",),
            stamps=tuple(f"{s.st_size}:{s.st_mtime_ns}" for s in found),
            where=str(data),
            opener=FolderOpener(data, names),
        ),
        files=files,
        names=joined_names(
            class_names(data, layout.classes), layout.joined, int(layout.reduce_zero_label)
        ),
        first=int(layout.reduce_zero_label),
        ignore_index=layout.ignore_index,
        joined=layout.joined,
    )


def _every(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"{folder} holds no pictures")
    return found


def _listed(path: Path, folder: Path) -> list[Path]:
    """Return the pictures that a list names, by stem or as 'picture label' pairs of paths."""
    if not path.is_file():
        raise UserError(f"no list of pictures {path}; name yours with train_list= and val_list=")
    stems = [Path(line.split()[0]).stem for line in path.read_text().splitlines() if line.strip()]
    known = {p.stem: p for p in _every(folder)}
    lacking = [stem for stem in stems if stem not in known]
    if lacking or not stems:
        raise UserError(
            f"{path} names {len(stems)} pictures, {len(lacking)} of which are not in {folder}"
            + (f", for example {lacking[0]}" if lacking else "")
        )
    return [known[stem] for stem in stems]


def joined_names(
    names: tuple[str, ...], joined: tuple[tuple[int, ...], ...], first: int
) -> tuple[str, ...]:
    """Return the names with every group called after its members; refuse groups that make no sense."""
    found = list(names)
    every = [label for group in joined for label in group]
    for group in joined:
        wrong = [label for label in group if not first <= label < first + len(names)]
        if len(group) < 2 or wrong or len(set(every)) < len(every):
            raise UserError(
                f"joined {list(group)}: a group has two labels or more, each between {first} and "
                f"{first + len(names) - 1}, and none is in two groups"
            )
        found[group[0] - first] = f"{names[group[0] - first]} to {names[group[-1] - first]}"
    return tuple(found)


def class_names(data: Path, classes: str) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels."""
    if classes == "voc":
        return tuple(VOC_NAMES)
    if classes:
        path = data / classes
        if not path.is_file():
            raise UserError(f"the class list {path} does not exist")
        names = tuple(filter(None, (line.strip() for line in path.read_text().splitlines())))
        if len(names) < 2 or len(set(names)) != len(names) or len(names) > UNLABELLED - 1:
            raise UserError(f"{path} should name 2 to 254 different classes, one on each line")
        return names
    table = data / "objectInfo150.txt"
    if not table.is_file():
        return tuple(f"class {i + 1}" for i in range(ADE_CLASSES))
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:] if line]
    if len(rows) != ADE_CLASSES:
        raise UserError(f"{table} should list {ADE_CLASSES} classes")
    return tuple(row[-1].split(",")[0].strip() for row in rows)
