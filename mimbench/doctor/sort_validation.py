"""Sort ImageNet's flat validation images into a folder for each class.

    python -m mimbench.doctor.sort_validation IMAGENET_DIR

The classes come from the development kit (ILSVRC2012_devkit_t12.tar.gz) or from Kaggle's
LOC_val_solution.csv, whichever lies in IMAGENET_DIR or up to three folders above it. Nothing moves
unless every image has a class; a stopped run can be started again.
"""

import csv
import io
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from scipy.io import loadmat

from mimbench.doctor.folders import image_names
from mimbench.system.errors import UserError
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.listing import first_few
from mimbench.system.options import Parser

DEVKIT, SOLUTION = "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"
_META = "ILSVRC2012_devkit_t12/data/meta.mat"
_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
_LEVELS_ABOVE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = Parser(prog="python -m mimbench.doctor.sort_validation")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that holds val/")
    args = parser.parse_args(arguments)
    return run_command(_sort, args.folder.absolute())


def _sort(folder: Path) -> int:
    sys.stderr.write(f"moved {sort_validation(folder):,} images into their class folders\n")
    return ExitCode.OK


def sort_validation(folder: Path) -> int:
    """Move each image in `folder`/val to its class; return how many were moved."""
    val = folder / "val"
    names = image_names(val)
    if not names:
        return 0
    classes = _read_classes(folder)
    unknown = [name for name in names if _number(name) not in classes]
    if unknown:
        raise UserError(
            f"{len(unknown):,} of {len(names):,} images in {val} have no known class "
            f"({first_few(unknown, 3)}); expected ILSVRC2012_val_00000001.JPEG to 00050000; nothing moved"
        )
    for name in names:
        target = val / classes[_number(name)]
        target.mkdir(exist_ok=True)
        (val / name).rename(target / name)
    return len(names)


def _number(name: str) -> int:
    """Return the image's number, 0 if its name has none."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else 0


def _read_classes(folder: Path) -> dict[int, str]:
    """Return image number -> class, from the nearest file that says so."""
    for place in [folder, *folder.parents[:_LEVELS_ABOVE]]:
        if (place / DEVKIT).is_file():
            return _read_devkit(place / DEVKIT)
        if (place / SOLUTION).is_file():
            return _read_solution(place / SOLUTION)
    raise UserError(
        f"the classes of the validation images are not known: neither {DEVKIT} (image-net.org) nor "
        f"{SOLUTION} (Kaggle) lies in {folder} or above it; put one of them there"
    )


def _read_solution(path: Path) -> dict[int, str]:
    """Read Kaggle's table: `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(row["ImageId"], row["PredictionString"].split()) for row in csv.DictReader(file)]
    return _checked({_number(f"{name}.JPEG"): boxes[0] for name, boxes in rows if boxes}, path)


def _read_devkit(path: Path) -> dict[int, str]:
    """Read the ground truth (one class number a line) and the class numbers' names."""
    try:
        with tarfile.open(path) as archive:
            meta, truth = (_member(archive, name, path) for name in (_META, _TRUTH))
    except tarfile.TarError as error:
        raise UserError(f"{path} cannot be read: {error}; download it again") from error
    synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnids = {int(row[0]): str(row[1]) for row in synsets}
    lines = truth.decode().split()
    return _checked({i: wnids[int(line)] for i, line in enumerate(lines, start=1)}, path)


def _member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    """Return the content of one file of the archive."""
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise UserError(f"{path} holds no {name}; expected ImageNet's 2012 development kit")
    return file.read()


def _checked(classes: dict[int, str], path: Path) -> dict[int, str]:
    """Refuse class names that are none: they become folders."""
    strange = sorted({wnid for wnid in classes.values() if not _WNID.fullmatch(wnid)})
    if strange:
        raise UserError(
            f"{path} names classes {first_few(strange, 3)}; expected names like n01440764"
        )
    return classes


if __name__ == "__main__":
    sys.exit(main())
