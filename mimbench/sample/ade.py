"""The scenes as ADE20K: JPEG pictures, 8-bit label maps with genuine ids, objectInfo150.txt."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.sample.digits import NAMES
from mimbench.sample.scenes import Scene, rim
from mimbench.system.files import write_text

FOLDERS = {"train": "training", "val": "validation"}
TEXTURE_IDS = (1, 10, 14)
"""Label of brick, grass, gravel: ADE20K's wall; grass; earth, ground."""
FIRST_DIGIT_ID = 141
"""Label of digit 0; the digits take the last ten of the 150 ids."""
CLASSES = 150

# The names of ADE20K's classes 1 to 140 (first synonym), in the order of its objectInfo150.txt.
_GENUINE_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent,
bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan
"""


def class_names() -> tuple[str, ...]:
    """Return the names of labels 1 to 150: ADE20K's own, then the ten digits."""
    genuine = " ".join(_GENUINE_NAMES.split()).split(", ")
    return (*genuine, *NAMES)


def file_stem(split: str, index: int) -> str:
    """Return the name of a picture and of its label map, without the suffix."""
    return f"ADE_{split}_{index + 1:08d}"


def label_map(scene: Scene) -> NDArray[np.uint8]:
    """Return the labels of `scene`: 0 = not labelled (the rims of things), else 1 to 150."""
    labels = np.asarray(TEXTURE_IDS, dtype=np.uint8)[scene.textures]
    for thing in scene.things:
        labels[rim(thing.mask)] = 0
        labels[thing.mask] = FIRST_DIGIT_ID + thing.digit
    return labels


@dataclass(frozen=True, kw_only=True)
class ClassCensus:
    """Counts what objectInfo150.txt reports of each class."""

    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(CLASSES + 1, dtype=np.int64))
    pictures: dict[str, NDArray[np.int64]] = field(
        default_factory=lambda: {name: np.zeros(CLASSES + 1, dtype=np.int64) for name in FOLDERS}
    )

    def add(self, split: str, labels: NDArray[np.uint8]) -> None:
        """Count one label map of `split`."""
        counts = np.bincount(labels.ravel(), minlength=CLASSES + 1)
        self.pictures[split][counts > 0] += 1
        if split == "train":
            self.pixels[:] += counts

    def write(self, path: Path) -> None:
        """Write the tab-separated table with the real file's columns and this data's numbers."""
        shares = self.pixels / max(self.pixels.sum(), 1)
        rows = ["Idx\tRatio\tTrain\tVal\tName"]
        for label, name in enumerate(class_names(), start=1):
            train, val = (self.pictures[split][label] for split in ("train", "val"))
            rows.append(f"{label}\t{shares[label]:.4f}\t{train}\t{val}\t{name}")
        write_text(path, "\n".join(rows) + "\n")
