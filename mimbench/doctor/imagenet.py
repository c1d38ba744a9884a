"""ImageNet-1k as `train/<wnid>/*` and `val/<wnid>/*`."""

import logging
import shlex
from pathlib import Path

from mimbench.doctor.check import Check, fault, ok, python_module
from mimbench.doctor.folders import image_names, scan, subfolder_names
from mimbench.system.listing import first_few

logger = logging.getLogger(__name__)

TITLE = "ImageNet"
CLASSES = 1_000
IMAGES = {"train": 1_281_167, "val": 50_000}


def looks_like(folder: Path) -> bool:
    """Return whether `folder` has the outline of this data set."""
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def obtain(folder: Path) -> str:
    """Return how one comes by the data; the archives need an account at image-net.org."""
    root = shlex.quote(str(folder))
    return (
        "# get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz "
        f"from image-net.org into {root}, then:\n{_unpack(folder, 'train')}\n{_unpack(folder, 'val')}"
    )


def check(folder: Path) -> list[Check]:
    """Check both splits and that they have the same classes."""
    checks = [_check_split(folder, split) for split in IMAGES]
    if all(check.status == "ok" for check in checks):
        train, val = (set(subfolder_names(folder / split)) for split in IMAGES)
        if train != val:
            odd = first_few(sorted(train ^ val), 3)
            checks.append(
                fault(
                    f"{TITLE} classes",
                    f"train and val differ in {odd}: labels would be shifted",
                    f"ls {shlex.quote(str(folder))}/*/ | sort | uniq -c | grep -v ' 2 '",
                )
            )
    return checks


def _check_split(folder: Path, split: str) -> Check:
    """Check one split: classes, images, and the usual ways to unpack it wrongly."""
    name, path = f"{TITLE} {split}", folder / split
    if not path.is_dir():
        return fault(name, f"{path} is missing", _unpack(folder, split))
    logger.info("counting the images in %s", path)
    classes = subfolder_names(path)
    flat = image_names(path)
    if flat:
        return _flat(folder, split, len(flat), len(classes))
    if archives := sorted(entry.name for entry in scan(path) if entry.name.endswith(".tar")):
        detail = f"{len(archives):,} archives in {path} are not unpacked ({first_few(archives, 3)})"
        return fault(name, detail, _unpack_classes(path))
    counts = {wnid: len(image_names(path / wnid)) for wnid in classes}
    found, empty = sum(counts.values()), [wnid for wnid, count in counts.items() if not count]
    detail = f"{found:,} images in {len(classes):,} classes"
    if found == IMAGES[split] and len(classes) == CLASSES and not empty:
        return ok(name, detail)
    detail += f", expected {IMAGES[split]:,} in {CLASSES:,}"
    if empty:
        detail += f"; without images: {first_few(empty, 3)}"
    return fault(name, detail, _unpack(folder, split))


def _flat(folder: Path, split: str, images: int, classes: int) -> Check:
    """Return what to do with images that lie beside the class folders instead of in them."""
    name, path = f"{TITLE} {split}", folder / split
    detail = f"flat: {images:,} images lie in {path} itself, {classes:,} class folders beside them"
    if split == "val":
        sort = _sort_validation(folder)
        return fault(name, f"{detail}; expected val/<wnid>/*", sort)
    # Training files carry their class in the name: n01440764_10026.JPEG.
    loop = 'for f in n*_*; do mkdir -p "${f%%_*}" && mv "$f" "${f%%_*}/"; done'
    return fault(
        name, f"{detail}; expected train/<wnid>/*", f"cd {shlex.quote(str(path))} && {loop}"
    )


def _unpack(folder: Path, split: str) -> str:
    """Return the command that unpacks the split's archive, which lies in `folder`."""
    path, archive = folder / split, folder / f"ILSVRC2012_img_{split}.tar"
    into = f"mkdir -p {shlex.quote(str(path))} && tar -xf {shlex.quote(str(archive))} -C {shlex.quote(str(path))}"
    if split == "train":
        return f"{into} && {_unpack_classes(path)}"
    return f"{into} && {_sort_validation(folder)}"


def _sort_validation(folder: Path) -> str:
    """Return the command that sorts flat validation images."""
    return f"{python_module('mimbench.doctor.sort_validation')} {shlex.quote(str(folder))}"


def _unpack_classes(path: Path) -> str:
    """Return the command that unpacks one archive for each class."""
    loop = 'for t in *.tar; do mkdir -p "${t%.tar}" && tar -xf "$t" -C "${t%.tar}" && rm "$t"; done'
    return f"cd {shlex.quote(str(path))} && {loop}"
