"""ADE20K, the 150-class challenge version: `images/` and `annotations/` with training, validation."""

import json
import shlex
from pathlib import Path

from mimbench.doctor.check import Check, fault, ok
from mimbench.doctor.child import ChildError, try_script
from mimbench.doctor.folders import image_names, scan, subfolder_names
from mimbench.system.listing import first_few

TITLE = "ADE20K"
CLASSES = 150
IMAGES = {"training": 20_210, "validation": 2_000}
_ARCHIVE = "ADEChallengeData2016"
_SAMPLED = 100

# Reads label maps and prints [[name, mode, lowest, highest], ...].
_READ_LABELS = """
import json, sys
from pathlib import Path
from PIL import Image
found = []
for name in json.loads(sys.argv[1]):
    with Image.open(name) as image:
        low, high = (image if len(image.getbands()) == 1 else image.convert("L")).getextrema()
        found.append([Path(name).name, image.mode, low, high])
print(json.dumps(found))
"""


def looks_like(folder: Path) -> bool:
    """Return whether `folder` has the outline of this data set, or of its other release."""
    return (folder / "annotations" / "validation").is_dir() or _is_full_release(folder)


def obtain(folder: Path) -> str:
    """Return the commands that fetch all of it."""
    parent, root = shlex.quote(str(folder.parent)), shlex.quote(str(folder))
    unpacked = shlex.quote(str(folder.parent / _ARCHIVE))
    archive = shlex.quote(str(folder.parent / f"{_ARCHIVE}.zip"))
    aside = f"mv {root} {shlex.quote(f'{folder}.old')} && " if folder.exists() else ""
    if folder.name == _ARCHIVE:
        return f"wget -c -P {parent} {_URL} && {aside}unzip -q {archive} -d {parent}"
    return f"wget -c -P {parent} {_URL} && {aside}unzip -q {archive} -d {parent} && mv {unpacked} {root}"


_URL = f"http://data.csail.mit.edu/places/ADEchallenge/{_ARCHIVE}.zip"


def check(folder: Path) -> list[Check]:
    """Check that it is the right archive, then each split."""
    inner = folder / _ARCHIVE
    if inner.is_dir() and not (folder / "images").is_dir():
        root = shlex.quote(str(folder))
        up = f"mv {shlex.quote(str(inner))}/* {root}/"
        return [fault(TITLE, f"one folder too deep: the data is in {inner}", up)]
    if _is_full_release(folder):
        detail = (
            f"{folder} is the full ADE20K release (thousands of classes, colour-coded _seg.png); "
            f"expected {_ARCHIVE} with its {CLASSES} classes"
        )
        return [fault(TITLE, detail, obtain(folder))]
    return [_check_split(folder, split) for split in IMAGES]


def _is_full_release(folder: Path) -> bool:
    """Return whether this is the full ADE20K of 2016 or 2021: the same pictures, other labels."""
    if any(entry.name.startswith(("index_ade20k", "ADE20K_20")) for entry in scan(folder)):
        return True
    images = folder / "images"
    return (images / "ADE").is_dir() or bool(subfolder_names(images / "validation"))


def _check_split(folder: Path, split: str) -> Check:
    """Check one split: counts, pairs, and a sample of its label maps."""
    name, again = f"{TITLE} {split}", obtain(folder)
    images, labels = (image_names(folder / kind / split) for kind in ("images", "annotations"))
    expected = IMAGES[split]
    if len(images) != expected or len(labels) != expected:
        detail = (
            f"{len(images):,} images and {len(labels):,} label maps, expected {expected:,} of each"
        )
        return fault(name, detail, again)
    odd = {Path(i).stem for i in images} ^ {Path(label).stem for label in labels}
    if odd:
        return fault(name, f"without their other half: {first_few(sorted(odd), 3)}", again)
    step = max(1, expected // _SAMPLED)
    paths = [str(folder / "annotations" / split / label) for label in labels[::step]]
    try:
        problem = _wrong_labels(paths)
    except ChildError as error:
        problem = f"a label map cannot be read: {error}"
    if problem:
        return fault(name, problem, again)
    return ok(name, f"{expected:,} pairs; {len(paths)} label maps read: 8-bit, 0 to {CLASSES}")


def _wrong_labels(paths: list[str]) -> str:
    """Return what is wrong with the first bad label map; '' if nothing is."""
    highest = 0
    for name, mode, _, high in json.loads(try_script(_READ_LABELS, [json.dumps(paths)])):
        if mode != "L":
            return f"{name} has pixel mode {mode}; expected one 8-bit channel (L)"
        if high == 255:
            return (
                f"{name} holds 255: its labels are shifted already; "
                f"expected 0 for what is not labelled and classes 1 to {CLASSES}"
            )
        if high > CLASSES:
            return f"{name} holds label {high}; expected 0 to {CLASSES}"
        highest = max(highest, high)
    return "" if highest else f"{len(paths)} label maps hold nothing but 0; expected 1 to {CLASSES}"
