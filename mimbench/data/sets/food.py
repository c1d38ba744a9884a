"""Food-101: images/<class>/ and meta/{train,test}.txt, lines 'class/number'."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, read_lines, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError


def read(folder: Path) -> Splits:
    """Return the splits."""
    return splits_of(folder, _published, "meta/train.txt")


def _published(folder: Path) -> Splits:
    classes = read_lines(folder / "meta" / "classes.txt")
    place = {name: i for i, name in enumerate(classes)}

    def images(part: str) -> ImageList:
        names = read_lines(folder / "meta" / f"{part}.txt")
        if unknown := [n for n in names if n.rpartition("/")[0] not in place]:
            raise UserError(f"{folder}: meta/classes.txt does not name the class of '{unknown[0]}'")
        labels = [place[name.rpartition("/")[0]] for name in names]
        return listed(folder, [f"images/{name}.jpg" for name in names], labels, classes)

    return Splits(train=images("train"), test=images("test"))


SETS = {
    "food": PublishedSet(
        title="Food-101",
        read=read,
        marks=("meta/train.txt", *PLAIN_MARKS),
        counts={"train": 75_750, "test": 25_250, "classes": 101},
        obtain=(
            "# food-101.tar.gz: https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/\n"
            "# -> FOLDER/images/, FOLDER/meta/"
        ),
        folders=("food-101", "food101", "Food101"),
    )
}
