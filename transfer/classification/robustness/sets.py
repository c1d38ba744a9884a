"""Test sets under ImageNet's labels: which classes of a head are right for an image, and which compete.

ReaL (Beyer et al. 2020), V2 (Recht et al. 2019), A (Hendrycks et al. 2021, 1907.07174), R (2006.16241),
Sketch (Wang et al. 2019), ObjectNet (Barbu et al. 2019). A and R let their own 200 classes compete and
no others; V2's folders are numbers, which sort wrongly as text; ReaL goes by the number in a file's name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from mimbench.data.lists import ImageList, read_folder
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from transfer.classification.robustness.maps import Groups, read_map

NUMBER = re.compile(r"(\d+)\.\w+$")
CLASSES = 1000
"""Of the head on which the published lists of folders hold."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Images whose labels count `groups`: classes of the head that are right for them."""

    images: ImageList
    groups: Groups
    restrict: bool = False
    """Only classes of some group compete, and an answer is its whole group."""
    border: int = 0
    """Pixels to cut off on each side first."""

    __test__ = False

    def part_of(self, clean: ImageList) -> "TestSet":
        """Return the clean images of the same classes, scored by the same rule."""
        place = {index: label for label, group in enumerate(self.groups) for index in group}
        rows = np.array(
            [i for i, label in enumerate(clean.labels) if int(label) in place], np.int64
        )
        part = clean.subset(rows)
        labels = np.array([place[int(label)] for label in part.labels], dtype=np.int64)
        return TestSet(images=part.relabel(labels), groups=self.groups, restrict=self.restrict)


def by_folder(
    root: Path, part: str, names: Mapping[str, int], *, published: Sequence[str] = ()
) -> TestSet:
    """Return a set whose folders are called as the head's classes are.

    Args:
        root: The data set.
        part: The folder of class folders in it.
        names: Folder name -> class of the head.
        published: The folders that the set has, where it is the published one.
    """
    images = read_folder(root, part)
    strangers = [name for name in images.classes if name not in names]
    if strangers:
        raise UserError(
            f"{images.where}: {first_few(strangers)} are no classes of the head; expected folders "
            f"called as its classes are, such as {first_few(sorted(names), 3)}"
        )
    if published and (odd := sorted(set(images.classes) ^ set(published))):
        raise UserError(
            f"{images.where} has {len(images.classes)} class folders, expected the {len(published)} of "
            f"the published set; they differ in {first_few(odd)}"
        )
    return TestSet(images=images, groups=tuple((names[name],) for name in images.classes))


def numbered(root: Path, part: str, classes: int) -> TestSet:
    """Return V2: a folder's name is the class, as a number."""
    images = read_folder(root, part)
    strangers = [n for n in images.classes if not n.isdecimal() or int(n) >= classes]
    if strangers:
        raise UserError(
            f"{images.where}: folder {first_few(strangers)} is no class of {classes}; expected folders "
            f'"0" to "{classes - 1}"'
        )
    # sorted as text, 10 comes before 2: the number counts, not the place
    return TestSet(images=images, groups=tuple((int(name),) for name in images.classes))


def objects(root: Path, part: str, groups: Mapping[str, tuple[int, ...]], *, rule: str) -> TestSet:
    """Return ObjectNet: the folders that overlap, each worth its classes; the red border is cut off."""
    images = read_folder(root, part)
    wanted = [i for i, name in enumerate(images.classes) if name in groups]
    if lacking := sorted(set(groups) - set(images.classes)):
        raise UserError(
            f"{images.where} lacks {first_few(lacking)}: {len(wanted)} of the {len(groups)} folders that "
            "overlap with ImageNet; unpack the whole set"
        )
    kept = images.subset(np.flatnonzero(np.isin(images.labels, wanted)))
    labels = np.array([wanted.index(int(label)) for label in kept.labels], dtype=np.int64)
    return TestSet(
        images=kept.relabel(labels),
        groups=tuple(groups[images.classes[i]] for i in wanted),
        restrict=rule == "max",
        border=2,
    )


def relabelled(val: ImageList, classes: Mapping[int | str, Sequence[int]]) -> TestSet:
    """Return ReaL: val images with every label that people gave them; those without are left out.

    Args:
        val: The validation images.
        classes: Labels by the number in the file's name, or by the file's name.
    """
    rows, groups = [], []
    for row, name in enumerate(val.names):
        found = classes.get(Path(name).name)
        if found is None and (match := NUMBER.search(name)):
            found = classes.get(int(match[1]))
        if found is None:
            raise UserError(
                f"{val.where}/{name} has no entry among the {len(classes):,} of ReaL; expected names as "
                "ILSVRC2012_val_00000001.JPEG"
            )
        if found:
            rows.append(row)
            groups.append(tuple(int(label) for label in found))
    images = val.subset(rows)
    return TestSet(images=images.relabel(np.arange(len(rows))), groups=tuple(groups))


def real_labels(path: Path | None) -> dict[int | str, list[int]]:
    """Return ReaL's labels: entry i is image i + 1; timm carries the official list.

    Args:
        path: Another file: a list in that order, or a mapping of file names.
    """
    where = path or files("timm.data").joinpath("_info", "imagenet_real_labels.json")
    try:
        found = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read ReaL's labels in {where}: {error}") from error
    if isinstance(found, list):
        return {i + 1: labels for i, labels in enumerate(found)}
    return dict(found)


@cache
def published_folders(which: str) -> tuple[str, ...]:
    """Return the synsets of ImageNet-A or -R, as timm carries the published lists."""
    path = files("timm.data").joinpath("_info", f"imagenet_{which}_synsets.txt")
    return tuple(path.read_text(encoding="utf-8").split())


def overlapping(path: Path | None) -> dict[str, tuple[int, ...]]:
    """Return ObjectNet's folder -> classes, of the published overlap or of another file like it."""
    return read_map(path or "objectnet_to_imagenet", "objectnet_folder", "imagenet_indices")
