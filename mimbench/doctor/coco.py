"""COCO 2017 as `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`."""

import json
import logging
import shlex
from pathlib import Path
from typing import Any

from mimbench.doctor.check import Check, fault, ok
from mimbench.doctor.folders import image_names
from mimbench.system.listing import first_few

logger = logging.getLogger(__name__)

TITLE = "COCO"
CATEGORIES = 80
IMAGES = {"train": 118_287, "val": 5_000}


def looks_like(folder: Path) -> bool:
    """Return whether `folder` has the outline of this data set."""
    instances = (folder / "annotations" / f"instances_{split}2017.json" for split in IMAGES)
    return (folder / "val2017").is_dir() or any(path.is_file() for path in instances)


def obtain(folder: Path) -> str:
    """Return the commands that fetch all of it."""
    archives = ["train2017.zip", "val2017.zip", "annotations_trainval2017.zip"]
    return "\n".join(_fetch(folder, archive) for archive in archives)


def check(folder: Path) -> list[Check]:
    """Check the annotation files, then the pictures that they name."""
    return [_check_split(folder, split) for split in IMAGES]


def _check_split(folder: Path, split: str) -> Check:
    """Check one split: counts from its annotations, and that each picture is there."""
    name, path = f"{TITLE} {split}", folder / "annotations" / f"instances_{split}2017.json"
    again = _fetch(folder, "annotations_trainval2017.zip")
    if not path.is_file():
        return fault(name, f"{path} is missing", again)
    logger.info("reading %s", path)
    try:
        content = json.loads(path.read_bytes())
        files = [str(image["file_name"]) for image in content["images"]]
        categories, objects = len(content["categories"]), len(content["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        return fault(name, f"{path} is not a whole instances file: {_reason(error)}", again)
    if problem := _miscounted(content, split):
        return fault(name, f"{path}: {problem}", again)
    pictures = folder / f"{split}2017"
    missing = sorted(set(files) - set(image_names(pictures)))
    if missing:
        detail = f"{len(missing):,} of {len(files):,} images are not in {pictures}: {first_few(missing, 3)}"
        return fault(name, detail, _fetch(folder, f"{split}2017.zip"))
    return ok(name, f"{len(files):,} images, {categories} categories, {objects:,} objects")


def _miscounted(content: dict[str, Any], split: str) -> str:
    """Return how the file's counts differ from the published ones; '' if they do not."""
    images, categories = len(content["images"]), len(content["categories"])
    if (images, categories) == (IMAGES[split], CATEGORIES):
        return ""
    return (
        f"{images:,} images and {categories} categories, "
        f"expected {IMAGES[split]:,} and {CATEGORIES}"
    )


def _reason(error: Exception) -> str:
    """Return the error in words: a KeyError's message is only the key."""
    return f"no {error} in it" if isinstance(error, KeyError) else str(error)


def _fetch(folder: Path, archive: str) -> str:
    """Return the command that fetches and unpacks one archive; unzip replaces only what differs."""
    part = "annotations" if archive.startswith("annotations") else "zips"
    url, root = f"http://images.cocodataset.org/{part}/{archive}", shlex.quote(str(folder))
    target = shlex.quote(str(folder / archive))
    return f"mkdir -p {root} && wget -c -P {root} {url} && unzip -qo {target} -d {root}"
