"""VOC2007 classification: an image may show several of 20 classes; 'difficult' ones do not count."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mimbench.data.contents import Splits
from mimbench.data.listed import listed, read_fields
from mimbench.data.lists import ImageList
from mimbench.data.matfiles import numbers
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
PLACES = ("VOCdevkit/VOC2007", "VOC2007", ".")
LISTS = "ImageSets/Main"


def read(folder: Path) -> Splits:
    """Return trainval and test with their tags; an image's label is the first class that it shows."""
    root = next(
        (folder / p for p in PLACES if (folder / p / LISTS / "bird_test.txt").is_file()), None
    )
    if root is None:
        raise UserError(
            f"{folder} has no {LISTS}/bird_test.txt; the test part is an archive of its own"
        )
    (train, shown), (test, wanted) = (_images(root, part) for part in ("trainval", "test"))
    validation = {row[0] for row in read_fields(root / LISTS / "bird_val.txt", 2)}
    held = [i for i, name in enumerate(train.names) if Path(name).stem in validation]
    return Splits(
        train=train, test=test, validation=np.array(held, dtype=np.int64), tags=(shown, wanted)
    )


def _images(root: Path, part: str) -> tuple[ImageList, NDArray[np.int8]]:
    columns, names = [], None
    for name in CLASSES:
        path = root / LISTS / f"{name}_{part}.txt"
        rows = read_fields(path, 2)
        mine = [row[0] for row in rows]
        if names is not None and mine != names:
            raise UserError(f"{path}: lists other images than {CLASSES[0]}_{part}.txt")
        names = mine
        # the file says 1, -1 and 0: shown, not shown, only as difficult ones
        columns.append([{1: 1, -1: 0, 0: -1}[v] for v in numbers([r[1] for r in rows], path)])
    tags = np.array(columns, dtype=np.int8).T
    files = [f"JPEGImages/{name}.jpg" for name in names or []]
    return listed(root, files, (tags == 1).argmax(axis=1).tolist(), CLASSES), tags


SETS = {
    "voc2007": PublishedSet(
        title="VOC2007",
        read=read,
        marks=tuple(f"{place}/{LISTS}/bird_test.txt" for place in PLACES),
        counts={"train": 5_011, "test": 4_952, "classes": 20},
        obtain=(
            "# VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/\n"
            "# -> FOLDER/VOCdevkit/VOC2007/"
        ),
        folders=("VOC2007", "voc07", "VOCdevkit/VOC2007"),
        score="tags",
    )
}
