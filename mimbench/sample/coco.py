"""The scenes as COCO: JPEG pictures and instances JSON, with the awkwardness of the real files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.sample.digits import NAMES, SPLITS
from mimbench.sample.outlines import mask_to_box, mask_to_polygons, mask_to_rle
from mimbench.sample.scenes import SIDE, Scene, Thing
from mimbench.system.files import write_json

CATEGORY_IDS = (1, 2, 3, 5, 7, 11, 13, 17, 19, 23)
"""Category of digit 0, 1, ...: with gaps, as in the real file (91 ids for 80 categories)."""
FOLDERS = {"train": "train2017", "val": "val2017"}

_ID_PRIME = 99_991


def image_id(split: str, index: int) -> int:
    """Return the id of a picture: not from 0, not in file order, unique over both splits."""
    return 1_000 + SPLITS.index(split) * _ID_PRIME + (index * 61_803 + 4_242) % _ID_PRIME


def file_name(index: int) -> str:
    """Return the file name of picture `index`; the number in it is not the id."""
    return f"{index:012d}.jpg"


def annotate(split: str, index: int, scene: Scene) -> list[dict[str, Any]]:
    """Return the scene's annotations; their ids are never 0, which pycocotools takes for none."""
    number = image_id(split, index)
    return [
        _annotation(number, number * 100 + place, thing)
        for place, thing in enumerate(scene.things, start=1)
    ]


def _annotation(image: int, number: int, thing: Thing) -> dict[str, Any]:
    outline = mask_to_rle(thing.mask) if thing.crowd else mask_to_polygons(thing.mask)
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY_IDS[thing.digit],
        "bbox": mask_to_box(thing.mask),
        "area": int(np.count_nonzero(thing.mask)),
        "iscrowd": int(thing.crowd),
        "segmentation": outline,
    }


def write_instances(
    root: Path, split: str, count: int, annotations: Iterable[dict[str, Any]]
) -> None:
    """Write annotations/instances_<split>2017.json: pictures by id, hence not in file order."""
    pictures = [
        {
            "id": image_id(split, index),
            "file_name": file_name(index),
            "width": SIDE,
            "height": SIDE,
            "license": 1,
        }
        for index in range(count)
    ]
    content = {
        "info": {"description": "mimbench sample data: digits on textures", "version": "1"},
        "licenses": [{"id": 1, "name": "see docs/sample-data.md", "url": ""}],
        "images": sorted(pictures, key=lambda picture: picture["id"]),
        "annotations": list(annotations),
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"}
            for number, name in zip(CATEGORY_IDS, NAMES, strict=True)
        ],
    }
    write_json(root / "annotations" / f"instances_{FOLDERS[split]}.json", content)
