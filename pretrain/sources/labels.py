"""What people annotated in training images, as numbers for each pixel: for masks that follow it.

A COCO file has objects: each one's polygons (or its box) are painted with a number of its own, later
objects over earlier ones. A folder of maps (`.png`, one channel) has an image's map under the image's
own name; there numbers are classes, and 0 and 255 are not annotated. Boxes are those of the COCO file,
or those that hold each number of a map; all have the number 1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from mimbench.sample import sample_root
from mimbench.system.errors import UserError
from pretrain.sections import ImagesConfig

Size = tuple[int, int]
"""Width and height, as PIL and COCO have it."""
Items = list[Mapping[str, object]]
UNLABELLED = (0, 255)
MOST = 254
"""Numbers that things of one image can have."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The annotations of a set of images."""

    boxes: bool
    objects: Mapping[str, tuple[Size, Items]] | None = None
    """By file name: an image's size and what is in it."""
    maps: Mapping[str, Path] | None = None
    """By the file name's stem."""

    def of(self, name: str, image: Tensor) -> Tensor:
        """Return the numbers (1, H, W), bytes, of an image (3, H, W); 0 where nothing is annotated.

        Args:
            name: Its path.
            image: Its pixels: annotations of another size are refused.
        """
        height, width = image.shape[1:]
        found: NDArray[np.uint8] = np.zeros((height, width), dtype=np.uint8)
        key = Path(name).name
        if self.objects is not None and key in self.objects:
            size, items = self.objects[key]
            check_size(name, size, (width, height))
            found = boxes_of(size, items) if self.boxes else paint_numbers(size, items)
        elif self.maps is not None and Path(name).stem in self.maps:
            found = read_map(self.maps[Path(name).stem])
            check_size(name, (found.shape[1], found.shape[0]), (width, height))
            found = box_numbers(found) if self.boxes else found
        return torch.from_numpy(found).unsqueeze(0)


def open_labels(path: Path | None, data: ImagesConfig, *, boxes: bool) -> Labels:
    """Return the annotations that a run's masks follow.

    Args:
        path: A COCO file, or a folder of maps; the sample's scenes bring their own.
        data: The images.
        boxes: Whether boxes are wanted, not outlines.
    """
    if path is None and data.name == "scenes":
        folder = sample_root(data.root) / "coco" / "annotations"
        path = folder / f"instances_{data.split}2017.json"
    if path is None:
        raise UserError(
            "masks that follow annotations need data.annotations: a COCO file, or a folder of maps "
            "with the images' names"
        )
    if not path.exists():
        raise UserError(f"data.annotations {path} does not exist")
    if path.is_dir():
        maps = {at.stem: at for at in sorted(path.rglob("*.png"))}
        if not maps:
            raise UserError(f"data.annotations {path} holds no map (.png)")
        return Labels(boxes=boxes, maps=maps)
    return Labels(boxes=boxes, objects=read_coco(path))


def read_coco(path: Path) -> dict[str, tuple[Size, Items]]:
    """Return the images of a COCO file by name: size and annotations."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {
            image["id"]: (image["file_name"], (image["width"], image["height"]))
            for image in content["images"]
        }
        found = {Path(name).name: (size, []) for name, size in images.values()}
        for item in content["annotations"]:
            found[Path(images[item["image_id"]][0]).name][1].append(item)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO annotation file: {error!r}") from error
    return found


def check_size(name: str, said: Size, seen: Size) -> None:
    """Refuse annotations of another picture."""
    if said != seen:
        raise UserError(
            f"the annotations of {name} are for {said[0]} x {said[1]} pixels, the image has "
            f"{seen[0]} x {seen[1]}"
        )


def boxes_of(size: Size, items: Items) -> NDArray[np.uint8]:
    """Return 1 inside the boxes of annotations, 0 elsewhere."""
    found = np.zeros((size[1], size[0]), dtype=np.uint8)
    for item in items:
        x, y, width, height = corners(item)
        found[round(y) : round(y + height), round(x) : round(x + width)] = 1
    return found


def paint_numbers(size: Size, items: Items) -> NDArray[np.uint8]:
    """Return each annotation's number, from 1, where its polygons (or its box) lie."""
    canvas = Image.new("L", size)
    brush = ImageDraw.Draw(canvas)
    for index, item in enumerate(items):
        number, shapes = index % MOST + 1, item.get("segmentation")
        if isinstance(shapes, list) and shapes:
            for shape in shapes:
                brush.polygon([float(v) for v in shape], fill=number)
        else:
            x, y, width, height = corners(item)
            right, bottom = round(x + width) - 1, round(y + height) - 1
            brush.rectangle((round(x), round(y), right, bottom), fill=number)
    return np.array(canvas)


def corners(item: Mapping[str, object]) -> tuple[float, float, float, float]:
    """Return left, top, width and height of an annotation's box."""
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise UserError(f"the annotation {item.get('id')} has no bbox of four numbers")
    x, y, width, height = (float(v) for v in box)
    return x, y, width, height


def read_map(path: Path) -> NDArray[np.uint8]:
    """Return a map's numbers, 0 where nothing is annotated."""
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P"):
                raise UserError(
                    f"{path} has mode {file.mode}; a map has one 8-bit channel (L or P)"
                )
            found = np.array(file)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the map {path}: {error}") from error
    found[np.isin(found, UNLABELLED)] = 0
    return found


def box_numbers(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 1 inside the box of each number of a map, 0 elsewhere."""
    found = np.zeros_like(numbers)
    for number in np.unique(numbers[numbers > 0]):
        rows, columns = np.nonzero(numbers == number)
        found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    return found
