"""Revisited Oxford and Paris: `gnd_<name>.pkl` beside `jpg/`, as the official repository lays them out."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.data.contents import Ids, Landmarks, require_files
from mimbench.data.lists import FolderOpener, ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

OBTAIN = (
    "# images and gnd_{name}.pkl: https://github.com/filipradenovic/revisitop\n"
    "# -> FOLDER/jpg/*.jpg and FOLDER/gnd_{name}.pkl"
)


def read(folder: Path, *, name: str) -> Landmarks:
    """Return database, queries and judgements; the ground truth's pickle is read as plain data."""
    # torch, which the interpreter makes arrays with, is slow to import
    from mimbench.data.pickles import as_array, as_texts, read_pickle  # noqa: PLC0415

    path = folder / f"gnd_{name}.pkl"
    truth = read_pickle(path)
    if not isinstance(truth, dict) or not {"imlist", "qimlist", "gnd"} <= truth.keys():
        raise UserError(f"{path}: expected a mapping with imlist, qimlist and gnd")
    database, queries = (
        _images(folder, as_texts(truth[key], f"{path}, {key}"), path)
        for key in ("imlist", "qimlist")
    )
    judged = truth["gnd"]
    if not isinstance(judged, list) or len(judged) != len(queries):
        raise UserError(f"{path}: gnd does not belong to its {len(queries)} queries")
    boxes, parts = [], {"easy": [], "hard": [], "junk": []}
    for number, entry in enumerate(judged):
        if not isinstance(entry, dict) or not {"bbx", *parts} <= entry.keys():
            raise UserError(f"{path}: query {number} lacks bbx, easy, hard or junk")
        boxes.append(_box(as_array(entry["bbx"], f"{path}, query {number}"), path, number))
        for part, rows in parts.items():
            rows.append(_places(as_array(entry[part], f"{path}, {part}"), len(database), path))
    return Landmarks(
        database=database,
        queries=queries,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        **{part: tuple(rows) for part, rows in parts.items()},
    )


def _images(folder: Path, names: list[str], path: Path) -> ImageList:
    files = [f"{name}.jpg" for name in names]
    if any("/" in name or ".." in name for name in names):
        raise UserError(f"{path}: names an image outside of jpg/")
    return ImageList(
        names=tuple(files),
        labels=np.zeros(len(files), dtype=np.int64),
        classes=("landmark",),
        stamps=require_files(folder / "jpg", files, str(path)),
        where=str(folder / "jpg"),
        opener=FolderOpener(folder / "jpg", tuple(files)),
    )


def _box(values: Any, path: Path, number: int) -> Any:
    if values.shape != (4,) or not (values[2] > values[0] and values[3] > values[1]):
        raise UserError(f"{path}: query {number} has the box {values.tolist()}")
    return values


def _places(values: Any, images: int, path: Path) -> Ids:
    places = values.astype(np.int64).ravel()
    if places.size and not (places.min() >= 0 and places.max() < images):
        raise UserError(f"{path}: judges an image beyond the {images} that it lists")
    return places


def _set(name: str, title: str, images: int, folders: tuple[str, ...]) -> PublishedSet:
    return PublishedSet(
        title=title,
        read=partial(read, name=name),
        marks=(f"gnd_{name}.pkl",),
        counts={"images": images, "queries": 70},
        obtain=OBTAIN.replace("{name}", name),
        folders=folders,
    )


SETS = {
    "roxford5k": _set("roxford5k", "Revisited Oxford", 4_993, ("roxford", "oxford5k", "Oxford5k")),
    "rparis6k": _set("rparis6k", "Revisited Paris", 6_322, ("rparis", "paris6k", "Paris6k")),
}
