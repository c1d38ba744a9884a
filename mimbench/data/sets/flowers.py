"""Oxford 102 Flowers: jpg/, imagelabels.mat and setid.mat."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, splits_of, with_validation
from mimbench.data.matfiles import numbers, read_mat
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

CLASSES = tuple(f"flower {i}" for i in range(1, 103))
"""The set numbers its classes, and does not name them."""


def read(folder: Path) -> Splits:
    """Return trnid with valid as train, tstid as test."""
    return splits_of(folder, _published, "setid.mat")


def _published(folder: Path) -> Splits:
    labels = numbers(read_mat(folder / "imagelabels.mat", "labels"), folder / "imagelabels.mat")
    path = folder / "setid.mat"
    parts = []
    for name in ("trnid", "valid", "tstid"):
        rows = numbers(read_mat(path, name), path)
        if not all(1 <= row <= len(labels) for row in rows):
            raise UserError(f"{path}: {name} names an image beyond the {len(labels)} labelled ones")
        files = [f"jpg/image_{row:05d}.jpg" for row in rows]
        parts.append(listed(folder, files, [labels[row - 1] - 1 for row in rows], CLASSES))
    return with_validation(*parts)


SETS = {
    "flowers": PublishedSet(
        title="Oxford Flowers",
        read=read,
        marks=("setid.mat", *PLAIN_MARKS),
        counts={"train": 2_040, "test": 6_149, "classes": 102},
        obtain=(
            "# 102flowers.tgz, imagelabels.mat, setid.mat: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/\n"
            "# -> FOLDER/jpg/*.jpg, FOLDER/imagelabels.mat, FOLDER/setid.mat"
        ),
        folders=("flowers-102", "flowers102", "oxford_flowers", "oxford-flowers-102"),
        score="per class",
    )
}
