"""CUB-200-2011: images/ and four lists that share the images' numbers."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, read_fields, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.matfiles import numbers
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError


def read(folder: Path) -> Splits:
    """Return the splits of train_test_split.txt."""
    return splits_of(folder, _published, "train_test_split.txt")


def _published(folder: Path) -> Splits:
    files, labels, parts = (
        dict(read_fields(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split")
    )
    if not files.keys() == labels.keys() == parts.keys():
        raise UserError(f"{folder}: images, labels and splits are not of the same images")
    classes = [row[1] for row in read_fields(folder / "classes.txt", 2)]

    def images(flag: str) -> ImageList:
        mine = [number for number in files if parts[number] == flag]
        truth = numbers([labels[number] for number in mine], folder / "image_class_labels.txt")
        names = [f"images/{files[number]}" for number in mine]
        return listed(folder, names, [label - 1 for label in truth], classes)

    return Splits(train=images("1"), test=images("0"))


SETS = {
    "cub": PublishedSet(
        title="CUB-200-2011",
        read=read,
        marks=("train_test_split.txt", *PLAIN_MARKS),
        counts={"train": 5_994, "test": 5_794, "classes": 200},
        obtain=(
            "# CUB_200_2011.tgz: https://www.vision.caltech.edu/datasets/cub_200_2011/\n"
            "# -> FOLDER/images/, FOLDER/images.txt, FOLDER/train_test_split.txt ..."
        ),
        folders=("CUB_200_2011", "cub200", "CUB"),
    )
}
