"""Data in COCO's format: checked with counts before anything starts, then registered by name."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as rle
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.system.listing import first_few

logger = logging.getLogger(__name__)

SHOWN = 3
"""Examples given with each count."""
OUTSIDE = 1.0
"""Pixels by which a box may leave its picture: real files round."""

Annotation = Mapping[str, Any]


@dataclass
class AnnotationFaults:
    """What is wrong with one file: kind -> count and the first examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: object) -> None:
        """Count one more of a kind."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.examples.setdefault(kind, []).append(str(example))

    def lines(self) -> list[str]:
        """Return one line for each kind."""
        return [
            f"{count} {kind} (for example {', '.join(self.examples[kind])})"
            for kind, count in self.counts.items()
        ]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One annotation file and the folder of its pictures, as found in the file."""

    annotations: Path
    images: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    pictures: int
    empty: int
    """Pictures without an object; training leaves them out, scoring does not."""
    objects: int
    crowds: int
    codes: int
    """Objects, crowds aside, whose mask is a run-length code."""

    @property
    def summary(self) -> str:
        """Return what a reader should know before training starts."""
        return (
            f"{self.annotations.name}: {self.pictures} pictures ({self.empty} without objects), "
            f"{self.objects} objects and {self.crowds} crowds in {len(self.classes)} classes"
        )


def inspect(annotations: Path, images: Path) -> Split:
    """Return what a COCO file holds; everything wrong with it is one error, with counts.

    Args:
        annotations: The JSON file.
        images: The folder that its file names are relative to.
    """
    content = _read(annotations)
    pictures = {picture["id"]: picture for picture in content["images"]}
    categories = sorted(content["categories"], key=lambda category: category["id"])
    known = {category["id"] for category in categories}
    fatal, harmless = AnnotationFaults(), AnnotationFaults()
    _check_files(content["images"], images, fatal)
    for kind, items in (("images", pictures), ("categories", known)):
        if len(items) < len(content[kind]):
            fatal.add(f"{kind} share their id with another", len(content[kind]) - len(items))
    _check_annotations(content["annotations"], pictures, known, fatal, harmless)
    if not content["images"] or not categories:
        fatal.add("lists are empty: images or categories", annotations.name)
    if fatal.counts:
        raise UserError(
            f"{annotations} with pictures in {images} cannot be used:\n  "
            + "\n  ".join(fatal.lines() + harmless.lines())
            + "\nmend the file, or name the right folder and file (train_images, train_json...)"
        )
    for line in harmless.lines():
        logger.warning("%s: %s", annotations.name, line)
    things = [item for item in content["annotations"] if not item.get("iscrowd", 0)]
    return Split(
        annotations=annotations,
        images=images,
        classes=tuple(category["name"] for category in categories),
        category_ids=tuple(sorted(known)),
        pictures=len(pictures),
        empty=len(pictures.keys() - {item["image_id"] for item in things}),
        objects=len(things),
        crowds=len(content["annotations"]) - len(things),
        codes=sum(isinstance(item["segmentation"], Mapping) for item in things),
    )


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the annotations {path}: {error.strerror or error}; "
            "check --data and train_json / val_json"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}; fetch or export it again") from error
    lacking = [k for k in ("images", "annotations", "categories") if not _holds_list(content, k)]
    if lacking:
        raise UserError(
            f"{path} is not in COCO's instances format: it has no list of {', '.join(lacking)}"
        )
    return content


def _holds_list(content: object, key: str) -> bool:
    return isinstance(content, dict) and isinstance(content.get(key), list)


def _check_files(pictures: Sequence[Annotation], folder: Path, fatal: AnnotationFaults) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder of pictures {folder}; check --data and train_images")
    parents = {(folder / picture["file_name"]).parent for picture in pictures}
    # one listing for each folder: a look at every file would take minutes on a network drive
    found = {entry for parent in parents if parent.is_dir() for entry in parent.iterdir()}
    for picture in pictures:
        if folder / picture["file_name"] not in found:
            fatal.add("pictures are missing", picture["file_name"])


def _check_annotations(
    annotations: Iterable[Annotation],
    pictures: Mapping[int, Annotation],
    categories: set[int],
    fatal: AnnotationFaults,
    harmless: AnnotationFaults,
) -> None:
    seen = set()
    for item in annotations:
        number = f"annotation {item.get('id')}"
        if item.get("id") in seen:
            fatal.add("annotations share their id with another", number)
        seen.add(item.get("id"))
        if item.get("category_id") not in categories:
            fatal.add("annotations name an unknown category", f"category {item.get('category_id')}")
        picture = pictures.get(item.get("image_id", None))
        if picture is None:
            fatal.add("annotations name an unknown picture", f"picture {item.get('image_id')}")
        elif len(item.get("bbox", ())) != 4:
            fatal.add("annotations have no box of four numbers", number)
        else:
            _check_box(item, picture, number, harmless)
        if not item.get("segmentation"):
            fatal.add("annotations have no mask (Mask R-CNN needs one for each object)", number)


def _check_box(
    item: Annotation, picture: Annotation, number: str, harmless: AnnotationFaults
) -> None:
    x, y, width, height = item["bbox"]
    if width <= 0 or height <= 0:
        harmless.add("boxes without area are left out of training", number)
    if (
        min(x, y) < -OUTSIDE
        or x + width > picture["width"] + OUTSIDE
        or y + height > picture["height"] + OUTSIDE
    ):
        harmless.add("boxes reach outside their picture and are cut", number)


def check_same_classes(train: Split, val: Split) -> None:
    """Raise `UserError` unless both files name the same classes under the same ids."""
    if (train.classes, train.category_ids) != (val.classes, val.category_ids):
        differing = set(zip(train.category_ids, train.classes, strict=True)) ^ set(
            zip(val.category_ids, val.classes, strict=True)
        )
        raise UserError(
            f"{train.annotations.name} and {val.annotations.name} disagree on their categories: "
            f"{len(differing)} differ: {first_few(sorted(differing), SHOWN)}"
        )


def register(split: Split) -> str:
    """Enter a data set in detectron2's catalogue and return its name there."""
    name = f"coco-format-{value_digest([str(split.annotations), str(split.images)])[:12]}"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, lambda: _records(split, name))
    MetadataCatalog.get(name).set(
        json_file=str(split.annotations), image_root=str(split.images), evaluator_type="coco"
    )
    return name


def _records(split: Split, name: str) -> list[dict[str, Any]]:
    records = load_coco_json(str(split.annotations), str(split.images), name)
    for record in records if split.codes else ():
        for item in record["annotations"]:
            # polygons and codes cannot be mixed in detectron2: codes can hold both
            if isinstance(item["segmentation"], list):
                parts = rle.frPyObjects(item["segmentation"], record["height"], record["width"])
                item["segmentation"] = rle.merge(parts)
    return records
