"""Places205 and SUN397: lists of image and class."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, read_fields, read_lines, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.matfiles import numbers
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

PLACES_MARKS = ("trainvalsplit_places205/train_places205.csv", "train_places205.csv")
PLACES_IMAGES = (
    "data/vision/torralba/deeplearning/images256",
    "images256",
    "imagesPlaces205_resize/data/vision/torralba/deeplearning/images256",
)
SUN_MARKS = ("ClassName.txt", "SUN397/ClassName.txt")


def read_places(folder: Path) -> Splits:
    """Return Places205's train and val: the labels of test were never published."""
    return splits_of(folder, _places, PLACES_MARKS)


def _places(folder: Path) -> Splits:
    lists = next((folder / m).parent for m in PLACES_MARKS if (folder / m).is_file())
    root = next((folder / p for p in PLACES_IMAGES if (folder / p).is_dir()), folder)
    rows = {p: _rows(lists / f"{p}_places205.csv") for p in ("train", "val")}
    # a path begins with the class: a/abbey/..., and some classes have parts: a/apartment_building/outdoor
    named = {label: name.rpartition("/")[0] for name, label in rows["train"]}
    classes = [named.get(i, f"class {i}") for i in range(max(named, default=-1) + 1)]

    def images(part: str) -> ImageList:
        names, labels = zip(*rows[part], strict=True)
        return listed(root, names, labels, classes)

    return Splits(train=images("train"), test=images("val"))


def _rows(path: Path) -> list[tuple[str, int]]:
    parts = [line.replace(",", " ").rsplit(maxsplit=1) for line in read_lines(path)]
    if not parts or any(len(part) != 2 for part in parts):
        raise UserError(f"{path}: expected lines 'a/abbey/image.jpg 0'")
    return list(zip([p[0] for p in parts], numbers([p[1] for p in parts], path), strict=True))


def read_sun(folder: Path) -> Splits:
    """Return the first of SUN397's ten official partitions: 50 images a class for each part."""
    return splits_of(folder, _sun, SUN_MARKS)


def _sun(folder: Path) -> Splits:
    root = folder if (folder / SUN_MARKS[0]).is_file() else folder / "SUN397"
    classes = read_lines(root / "ClassName.txt")
    place = {name: i for i, name in enumerate(classes)}

    def images(part: str) -> ImageList:
        spots = (root, folder, root / "Partitions", folder / "Partitions")
        path = next((p / f"{part}_01.txt" for p in spots if (p / f"{part}_01.txt").is_file()), None)
        if path is None:
            raise UserError(
                f"{folder} has no {part}_01.txt: the official splits are in Partitions.zip, a file of "
                "their own"
            )
        names = [row[0].lstrip("/") for row in read_fields(path, 1)]
        if unknown := [n for n in names if f"/{n.rpartition('/')[0]}" not in place]:
            raise UserError(f"{root}/ClassName.txt does not name the class of '{unknown[0]}'")
        labels = [place[f"/{name.rpartition('/')[0]}"] for name in names]
        return listed(root, names, labels, classes)

    return Splits(train=images("Training"), test=images("Testing"))


SETS = {
    "places205": PublishedSet(
        title="Places205",
        read=read_places,
        marks=(*PLACES_MARKS, *PLAIN_MARKS),
        counts={"train": 2_448_873, "test": 20_500, "classes": 205},
        obtain=(
            "# imagesPlaces205_resize.tar.gz, trainvalsplit_places205.tar.gz: http://places.csail.mit.edu\n"
            "# -> FOLDER/data/vision/.../images256/, FOLDER/trainvalsplit_places205/"
        ),
        folders=("Places205", "places_205"),
    ),
    "sun397": PublishedSet(
        title="SUN397",
        read=read_sun,
        marks=(*SUN_MARKS, *PLAIN_MARKS),
        counts={"train": 19_850, "test": 19_850, "classes": 397},
        obtain=(
            "# SUN397.tar.gz, Partitions.zip: https://vision.princeton.edu/projects/2010/SUN/\n"
            "# -> FOLDER/SUN397/<a>/<class>/, FOLDER/SUN397/ClassName.txt, FOLDER/Partitions/"
        ),
        folders=("SUN397", "sun", "SUN"),
    ),
}
