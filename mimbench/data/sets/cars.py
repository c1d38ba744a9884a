"""Stanford Cars: cars_train/, cars_test/ and the .mat files of the devkit, whose labels begin at 1."""

from pathlib import Path

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, listed, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.matfiles import field, numbers, read_mat
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

TEST = "cars_test_annos_withlabels.mat"


def read(folder: Path) -> Splits:
    """Return the splits."""
    return splits_of(folder, _published, ("devkit/cars_train_annos.mat", "cars_train_annos.mat"))


def _published(folder: Path) -> Splits:
    devkit = folder / "devkit" if (folder / "devkit").is_dir() else folder
    classes = [str(n).replace("/", "-") for n in read_mat(devkit / "cars_meta.mat", "class_names")]
    # torchvision keeps the labelled list of the test part beside the devkit
    test = next((p / TEST for p in (folder, devkit) if (p / TEST).is_file()), None)
    if test is None:
        raise UserError(
            f"{folder} has no {TEST}: the devkit's own list of the test part has no labels, so nothing "
            "can be scored; it is published beside the devkit"
        )
    train = _images(folder, "cars_train", devkit / "cars_train_annos.mat", classes)
    return Splits(train=train, test=_images(folder, "cars_test", test, classes))


def _images(folder: Path, part: str, path: Path, classes: list[str]) -> ImageList:
    records = read_mat(path, "annotations")
    files = [f"{part}/{name}" for name in field(records, "fname", path)]
    labels = [label - 1 for label in numbers(field(records, "class", path), path)]
    return listed(folder, files, labels, classes)


SETS = {
    "cars": PublishedSet(
        title="Stanford Cars",
        read=read,
        marks=("devkit/cars_train_annos.mat", "cars_train_annos.mat", *PLAIN_MARKS),
        counts={"train": 8_144, "test": 8_041, "classes": 196},
        obtain=(
            "# cars_train.tgz, cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat:\n"
            "# https://ai.stanford.edu/~jkrause/cars/car_dataset.html\n"
            "# -> FOLDER/cars_train/, FOLDER/cars_test/, FOLDER/devkit/, "
            "FOLDER/cars_test_annos_withlabels.mat"
        ),
        folders=("stanford_cars", "stanford-cars", "cars196", "Cars_196", "StanfordCars"),
    )
}
