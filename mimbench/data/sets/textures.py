"""Describable Textures (DTD): images/<class>/ and labels/{train,val,test}1.txt, the first of ten splits."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, read_lines, splits_of, with_validation
from mimbench.data.lists import ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError


def read(folder: Path) -> Splits:
    """Return train with val, and test, of split 1."""
    return splits_of(folder, _published, "labels/train1.txt")


def _published(folder: Path) -> Splits:
    lines = {p: read_lines(folder / "labels" / f"{p}1.txt") for p in ("train", "val", "test")}
    classes = sorted({line.partition("/")[0] for line in lines["train"]})
    place = {name: i for i, name in enumerate(classes)}

    def images(part: str) -> ImageList:
        if unknown := [n for n in lines[part] if n.partition("/")[0] not in place]:
            raise UserError(f"{folder}: train1.txt has no image of the class of '{unknown[0]}'")
        labels = [place[name.partition("/")[0]] for name in lines[part]]
        return listed(folder, [f"images/{name}" for name in lines[part]], labels, classes)

    return with_validation(images("train"), images("val"), images("test"))


SETS = {
    "dtd": PublishedSet(
        title="DTD",
        read=read,
        marks=("labels/train1.txt", *PLAIN_MARKS),
        counts={"train": 3_760, "test": 1_880, "classes": 47},
        obtain=(
            "# dtd-r1.0.1.tar.gz: https://www.robots.ox.ac.uk/~vgg/data/dtd/\n"
            "# -> FOLDER/images/, FOLDER/labels/"
        ),
        folders=("dtd/dtd", "DTD"),
    )
}
