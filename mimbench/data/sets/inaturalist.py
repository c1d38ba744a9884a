"""iNaturalist 2018 and 2019: train_val<year>/ and COCO's form of lists, train<year>.json and val<year>.json."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from mimbench.data.contents import Splits
from mimbench.data.listed import LARGEST_LIST, PLAIN_MARKS, listed, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError


def read(folder: Path, *, year: int) -> Splits:
    """Return train and val: the labels of test were never published."""
    return splits_of(folder, partial(_published, year=year), f"train{year}.json")


def _published(folder: Path, *, year: int) -> Splits:
    train, val = (_content(folder / f"{part}{year}.json") for part in ("train", "val"))
    ids = sorted({int(category["id"]) for category in train["categories"]})
    place = {number: i for i, number in enumerate(ids)}
    # names are Latin and not in every file: the number is what the folders are called
    classes = [f"category {number}" for number in ids]

    def images(content: Any, part: str) -> ImageList:
        try:
            label = {a["image_id"]: place[a["category_id"]] for a in content["annotations"]}
            names = [entry["file_name"] for entry in content["images"]]
            labels = [label[entry["id"]] for entry in content["images"]]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"FOLDER/{part}{year}.json: an image without its label ({error})"
            ) from error
        return listed(folder, names, labels, classes)

    return Splits(train=images(train, "train"), test=images(val, "val"))


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise UserError(
                f"{path}: {path.stat().st_size:,} bytes, more than the published list's"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable: {error}") from error
    if not isinstance(found, dict) or not {"images", "annotations"} <= found.keys():
        raise UserError(f"{path}: expected images, annotations and categories")
    return {"categories": [], **found}


def _set(year: int, train: int, val: int, classes: int) -> PublishedSet:
    return PublishedSet(
        title=f"iNaturalist {year}",
        read=partial(read, year=year),
        marks=(f"train{year}.json", *PLAIN_MARKS),
        counts={"train": train, "test": val, "classes": classes},
        obtain=(
            f"# train_val{year}.tar.gz, train{year}.json.tar.gz, val{year}.json.tar.gz:\n"
            f"# https://github.com/visipedia/inat_comp/tree/master/{year}\n"
            f"# -> FOLDER/train_val{year}/, FOLDER/train{year}.json, FOLDER/val{year}.json"
        ),
        folders=(f"inaturalist{year}", f"iNaturalist{year}", f"inat{year}", f"iNat{year}"),
    )


SETS = {
    "inat18": _set(2018, 437_513, 24_426, 8_142),
    "inat19": _set(2019, 265_213, 3_030, 1_010),
}
