"""Oxford-IIIT Pets: images/ and annotations/, lines 'name class species breed'."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, read_fields, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.matfiles import numbers
from mimbench.data.sets import PublishedSet


def read(folder: Path) -> Splits:
    """Return trainval and test."""
    return splits_of(folder, _published, "annotations/trainval.txt")


def _published(folder: Path) -> Splits:
    rows = {p: read_fields(folder / "annotations" / f"{p}.txt", 4) for p in ("trainval", "test")}
    # an image is called by its class and a number
    named = {int(label): name.rpartition("_")[0] for name, label, *_ in rows["trainval"]}
    classes = [named.get(i, f"class {i}") for i in range(1, max(named) + 1)]

    def images(part: str) -> ImageList:
        path = folder / "annotations" / f"{part}.txt"
        files = [f"images/{row[0]}.jpg" for row in rows[part]]
        labels = numbers([row[1] for row in rows[part]], path)
        return listed(folder, files, [label - 1 for label in labels], classes)

    return Splits(train=images("trainval"), test=images("test"))


SETS = {
    "pets": PublishedSet(
        title="Oxford-IIIT Pets",
        read=read,
        marks=("annotations/trainval.txt", *PLAIN_MARKS),
        counts={"train": 3_680, "test": 3_669, "classes": 37},
        obtain=(
            "# images.tar.gz, annotations.tar.gz: https://www.robots.ox.ac.uk/~vgg/data/pets/\n"
            "# -> FOLDER/images/, FOLDER/annotations/"
        ),
        folders=("oxford-iiit-pet", "oxford_pets", "oxford-pets", "OxfordPets"),
        score="per class",
    )
}
