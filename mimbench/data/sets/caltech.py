"""Caltech-101: 101_ObjectCategories/<class>/; no official split, so 30 images a class train, as is usual."""

from pathlib import Path

import numpy as np

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, splits_of
from mimbench.data.lists import read_folder
from mimbench.data.sets import PublishedSet
from mimbench.data.subsets import draw_per_class

CLUTTER = "BACKGROUND_Google"
TRAIN = 30
MARKS = ("101_ObjectCategories", "caltech-101/101_ObjectCategories")


def read(folder: Path) -> Splits:
    """Return 30 random images of each class, always the same, and all others; the clutter is left out."""
    return splits_of(folder, _published, MARKS)


def _published(folder: Path) -> Splits:
    root = next((folder / m).parent for m in MARKS if (folder / m).is_dir())
    whole = read_folder(root, "101_ObjectCategories", without=(CLUTTER,))
    train = draw_per_class(whole.labels, TRAIN, draw=0)
    test = np.setdiff1d(np.arange(len(whole)), train)
    return Splits(train=whole.subset(train), test=whole.subset(test))


SETS = {
    "caltech101": PublishedSet(
        title="Caltech-101",
        read=read,
        marks=(*MARKS, *PLAIN_MARKS),
        counts={"train": 3_030, "test": 5_647, "classes": 101},
        obtain=(
            "# caltech-101.zip: https://data.caltech.edu/records/mzrjq-6wc02\n"
            "# -> FOLDER/101_ObjectCategories/<class>/"
        ),
        folders=("caltech-101", "Caltech101", "caltech"),
        score="per class",
    )
}
