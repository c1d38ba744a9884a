"""FGVC-Aircraft 2013b: data/images/ and data/images_variant_<part>.txt, lines 'name variant'."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import (
    PLAIN_MARKS,
    listed,
    read_fields,
    read_lines,
    splits_of,
    with_validation,
)
from mimbench.data.lists import ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

MARKS = ("data/images_variant_train.txt", "images_variant_train.txt")


def read(folder: Path) -> Splits:
    """Return train with val, and test: the variants are the classes."""
    return splits_of(folder, _published, MARKS)


def _published(folder: Path) -> Splits:
    root = folder / "data" if (folder / MARKS[0]).is_file() else folder
    classes = read_lines(root / "variants.txt")
    place = {name: i for i, name in enumerate(classes)}

    def images(part: str) -> ImageList:
        rows = read_fields(root / f"images_variant_{part}.txt", 2)
        if unknown := [row[1] for row in rows if row[1] not in place]:
            raise UserError(f"{root}: variants.txt does not name '{unknown[0]}'")
        names = [f"images/{row[0]}.jpg" for row in rows]
        return listed(root, names, [place[row[1]] for row in rows], classes)

    return with_validation(images("train"), images("val"), images("test"))


SETS = {
    "aircraft": PublishedSet(
        title="FGVC-Aircraft",
        read=read,
        marks=(*MARKS, *PLAIN_MARKS),
        counts={"train": 6_667, "test": 3_333, "classes": 100},
        obtain=(
            "# fgvc-aircraft-2013b.tar.gz: https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/\n"
            "# -> FOLDER/data/"
        ),
        folders=("fgvc-aircraft-2013b", "fgvc_aircraft", "FGVCAircraft"),
        score="per class",
    )
}
