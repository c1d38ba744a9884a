"""Pascal VOC 2012 with the augmented label maps: `JPEGImages/`, `SegmentationClassAug/`, lists."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimbench.data.label_colours import label_colour
from mimbench.doctor.check import Check, fault, ok
from mimbench.doctor.child import ChildError, try_script
from mimbench.doctor.folders import image_names
from mimbench.system.listing import first_few

TITLE = "Pascal VOC"
CLASSES = 21
"""Background and 20 kinds of things."""
VOID = 255
"""The rim around every object: not labelled."""
PICTURES = {"trainaug": 10_582, "val": 1_449}
LABELS = "SegmentationClassAug"
LISTS = "ImageSets/Segmentation"
_URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_TOO_DEEP = ("VOCdevkit/VOC2012", "VOC2012")
_SAMPLED = 100

# Reads label maps and prints [[name, mode, values, palette's first colours], ...].
_READ_LABELS = """
import json, sys
from pathlib import Path
from PIL import Image
found = []
for name in json.loads(sys.argv[1]):
    with Image.open(name) as image:
        plain = len(image.getbands()) == 1
        values = [v for v, n in enumerate(image.histogram()) if n] if plain else []
        palette = (image.getpalette() or []) if image.mode == "P" else []
        found.append([Path(name).name, image.mode, values, palette[: 3 * 21]])
print(json.dumps(found))
"""


def looks_like(folder: Path) -> bool:
    """Return whether `folder` has the outline of this data set."""
    roots = (folder, *(folder / name for name in _TOO_DEEP))
    return any(
        (root / "JPEGImages").is_dir()
        and ((root / LABELS).is_dir() or (root / "SegmentationClass").is_dir())
        for root in roots
    )


def obtain(folder: Path) -> str:
    """Return the commands that fetch VOC's own part, and what has to be added to it."""
    parent, root = shlex.quote(str(folder.parent)), shlex.quote(str(folder))
    archive = shlex.quote(str(folder.parent / Path(_URL).name))
    unpacked = shlex.quote(str(folder.parent / "VOCdevkit" / "VOC2012"))
    return (
        f"wget -c -P {parent} {_URL} && tar -xf {archive} -C {parent} && mv {unpacked} {root}\n"
        f"# then SBD's label maps as {root}/{LABELS}/*.png, and their list {LISTS}/trainaug.txt\n"
        f"{_own_labels(folder)}"
    )


def check(folder: Path) -> list[Check]:
    """Check that it lies at the right depth, then each split."""
    for name in _TOO_DEEP:
        if (folder / name).is_dir() and not (folder / "JPEGImages").is_dir():
            root, inner = shlex.quote(str(folder)), shlex.quote(str(folder / name))
            return [fault(TITLE, f"too deep: the data is in {inner}", f"mv {inner}/* {root}/")]
    return [_check_split(folder, split) for split in PICTURES]


def _check_split(folder: Path, split: str) -> Check:
    """Check one split: its list, a picture and a label map for each name, a sample of the labels."""
    name, path = f"{TITLE} {split}", folder / LISTS / f"{split}.txt"
    if not path.is_file():
        return fault(name, f"{path} is missing", _list_again(folder, split))
    stems = read_list(path)
    if len(stems) != PICTURES[split] or len(set(stems)) != len(stems):
        detail = (
            f"{path} names {len(set(stems)):,} different pictures on {len(stems):,} lines, "
            f"expected {PICTURES[split]:,}"
        )
        return fault(name, detail, _list_again(folder, split))
    for kind, fix in (("JPEGImages", obtain(folder)), (LABELS, _own_labels(folder))):
        held = {Path(found).stem for found in image_names(folder / kind)}
        if missing := sorted(set(stems) - held):
            detail = f"{len(missing):,} of {len(stems):,} are not in {folder / kind}: {first_few(missing, 3)}"
            return fault(name, detail, fix)
    if shared := _shared(folder, split, stems):
        detail = f"{len(shared):,} pictures are in val too: {first_few(shared, 3)}"
        return fault(name, detail, _list_again(folder, split))
    paths = [
        str(folder / LABELS / f"{stem}.png") for stem in stems[:: max(1, len(stems) // _SAMPLED)]
    ]
    try:
        found = json.loads(try_script(_READ_LABELS, [json.dumps(paths)]))
        problem = wrong_labels(found) or (_without_void(found) if split == "val" else "")
    except ChildError as error:
        problem = f"a label map cannot be read: {error}"
    if problem:
        return fault(name, problem, _own_labels(folder, anew=True))
    return ok(
        name,
        f"{len(stems):,} pairs; {len(paths)} label maps read: classes 0 to {CLASSES - 1}, void {VOID}",
    )


def read_list(path: Path) -> list[str]:
    """Return the stems that a list names, one on each line or as pairs of picture and label map."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _shared(folder: Path, split: str, stems: Sequence[str]) -> list[str]:
    other = folder / LISTS / "val.txt"
    if split == "val" or not other.is_file():
        return []
    return sorted(set(stems) & set(read_list(other)))


def wrong_labels(found: Sequence[Any]) -> str:
    """Return what is wrong with the first bad label map; '' if nothing is.

    Args:
        found: (name, mode, values, palette) of each.
    """
    every: set[int] = set()
    for name, mode, values, palette in found:
        if mode not in ("L", "P"):
            return (
                f"{name} has pixel mode {mode}: colours, not classes; expected one 8-bit channel "
                "(L or P)"
            )
        stray = [v for v in values if CLASSES <= v < VOID]
        if stray:
            return (
                f"{name} holds label {stray[0]}; expected 0 to {CLASSES - 1}, and {VOID} for void"
            )
        if _renumbered(palette):
            return f"{name} has VOC's colours in another order: its classes were numbered anew"
        every.update(values)
    if not every - {0, VOID}:
        return f"{len(found)} label maps hold no class but background"
    return ""


def _without_void(found: Sequence[Any]) -> str:
    """Return the fault of VOC's own label maps without their rims; SBD's never had any."""
    if any(VOID in values for _, _, values, _ in found):
        return ""
    return (
        f"none of {len(found)} label maps holds {VOID}, the rim around every object: pixels that do "
        "not count would be scored"
    )


def _renumbered(palette: Sequence[int]) -> bool:
    """Return whether a palette has VOC's colours at the wrong places; another palette says nothing."""
    colours = [(palette[i], palette[i + 1], palette[i + 2]) for i in range(0, len(palette) - 2, 3)]
    usual = [label_colour(label) for label in range(CLASSES)]
    known = [(at, usual.index(colour)) for at, colour in enumerate(colours) if colour in usual]
    return len(known) > 1 and any(at != right for at, right in known)


def _own_labels(folder: Path, *, anew: bool = False) -> str:
    """Return the command that puts VOC's own label maps among SBD's, which lack those of val."""
    source, target = (shlex.quote(str(folder / n)) for n in ("SegmentationClass", LABELS))
    return f"mkdir -p {target} && cp {'' if anew else '-n '}{source}/*.png {target}/"


def _list_again(folder: Path, split: str) -> str:
    """Return the command that makes a list: every label map that is not in val."""
    if split == "val":
        return obtain(folder)
    root = shlex.quote(str(folder))
    return (
        f"cd {root} && ls {LABELS} | sed 's/[.]png$//' | sort | comm -23 - <(sort {LISTS}/val.txt) "
        f"> {LISTS}/trainaug.txt"
    )
