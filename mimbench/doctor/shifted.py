"""Robustness sets as their archives unpack: class folders by wnid, by number or by name."""

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from mimbench.doctor.check import Check, fault, ok
from mimbench.doctor.folders import image_names, subfolder_names
from mimbench.system.listing import first_few

logger = logging.getLogger(__name__)
CORRUPTIONS = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
Variation = Literal[
    "original",
    "only_fg",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
]
"""Of the Backgrounds Challenge."""
VARIATIONS: tuple[Variation, ...] = get_args(Variation)
Faults = Callable[[Path], list[str]]


@dataclass(frozen=True, kw_only=True)
class ShiftedSet:
    """One set: what it is called, how its folder is recognised, what has to lie in it."""

    TITLE: str
    source: str
    """Where one gets it."""
    mark: Callable[[Path], bool]
    faults: Faults
    names: tuple[str, ...]
    """What its archive and its users call the folder."""
    found: Callable[[Path], str] = lambda folder: f"complete: {folder}"

    def looks_like(self, folder: Path) -> bool:
        """Return whether `folder` has the outline of this data set."""
        return folder.is_dir() and self.mark(folder)

    def obtain(self, folder: Path) -> str:
        """Return how one comes by the data."""
        return f"# get it from {self.source} and unpack it as {shlex.quote(str(folder))}"

    def check(self, folder: Path) -> list[Check]:
        """Check folders and counts."""
        logger.info("counting the images in %s", folder)
        if not self.looks_like(folder):
            return [fault(self.TITLE, f"{folder} is not laid out as this set", self.obtain(folder))]
        if found := self.faults(folder):
            return [fault(self.TITLE, first_few(found, separator="; "), self.obtain(folder))]
        return [ok(self.TITLE, self.found(folder))]


def classes_of(folder: Path, images: int | None, expected: Sequence[str]) -> list[str]:
    """Return what is wrong with class folders and with the number of images in them."""
    names = subfolder_names(folder)
    faults = []
    if lacking := sorted(set(expected) - set(names)):
        faults.append(f"{folder} lacks the class folders {first_few(lacking, 3)}")
    if strangers := sorted(set(names) - set(expected)):
        faults.append(f"{folder} holds {first_few(strangers, 3)}, which are none of its classes")
    counts = {name: len(image_names(folder / name)) for name in names}
    if empty := [name for name, count in counts.items() if not count]:
        faults.append(f"without images: {first_few(empty, 3)}")
    total = sum(counts.values())
    if images is not None and total != images:
        faults.append(f"{total:,} images, expected {images:,}")
    return faults


@cache
def synsets(which: str = "") -> tuple[str, ...]:
    """Return the folder names of ImageNet, -A or -R, as timm carries them; timm is not imported."""
    spec = find_spec("timm")
    places = list(spec.submodule_search_locations or ()) if spec else []
    name = f"imagenet_{which}_synsets.txt" if which else "imagenet_synsets.txt"
    path = Path(places[0], "data", "_info", name) if places else Path(name)
    return tuple(path.read_text(encoding="utf-8").split()) if path.is_file() else ()


def _by_synset(which: str, images: int | None) -> Faults:
    return lambda folder: classes_of(folder, images, synsets(which) or subfolder_names(folder))


def _wnids(folder: Path) -> bool:
    names = subfolder_names(folder)
    return bool(names) and all(len(n) == 9 and n[0] == "n" and n[1:].isdecimal() for n in names)


def _v2(folder: Path) -> list[str]:
    # sorted as text, 10 comes before 2: whoever reads this as an image folder scores at chance
    return classes_of(folder, 10_000, [str(i) for i in range(1000)])


def _objectnet(folder: Path) -> list[str]:
    names = subfolder_names(folder / "images")
    if len(names) != 313:
        return [f"{folder / 'images'} has {len(names)} object folders, expected 313"]
    return classes_of(folder / "images", None, names)


def _corrupted(folder: Path) -> list[str]:
    lacking = [
        f"{name}/{severity}"
        for name in CORRUPTIONS
        for severity in range(1, 6)
        if not (folder / name / str(severity)).is_dir()
    ]
    if lacking:
        return [f"{folder} lacks {first_few(lacking)}"]
    # 3.75 million files: one part is counted, of the others the classes
    faults = classes_of(folder / CORRUPTIONS[0] / "1", 50_000, synsets())
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            count = len(subfolder_names(folder / name / str(severity)))
            if count != 1000:
                faults.append(f"{name}/{severity} has {count} class folders, expected 1,000")
    return faults


def _backgrounds(folder: Path) -> list[str]:
    faults = []
    for name in VARIATIONS:
        count = len(subfolder_names(folder / name / "val"))
        if count != 9:
            faults.append(f"{name}/val has {count} class folders, expected 9")
    return faults


def count_variations(folder: Path) -> str:
    """Return how many images each variation has."""
    totals = {
        name: sum(len(image_names(p)) for p in (folder / name / "val").iterdir() if p.is_dir())
        for name in VARIATIONS
    }
    return ", ".join(f"{name} {count:,}" for name, count in totals.items())


SETS = {
    "imagenet-v2": ShiftedSet(
        TITLE="ImageNet-V2",
        source="github.com/modestyachts/ImageNetV2",
        mark=lambda f: (f / "0").is_dir() and all(n.isdecimal() for n in subfolder_names(f)),
        faults=_v2,
        names=("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency"),
    ),
    "imagenet-a": ShiftedSet(
        TITLE="ImageNet-A",
        source="github.com/hendrycks/natural-adv-examples",
        mark=_wnids,
        faults=_by_synset("a", 7_500),
        names=("imagenet_a",),
    ),
    "imagenet-r": ShiftedSet(
        TITLE="ImageNet-R",
        source="github.com/hendrycks/imagenet-r",
        mark=_wnids,
        faults=_by_synset("r", 30_000),
        names=("imagenet_r",),
    ),
    "imagenet-sketch": ShiftedSet(
        TITLE="ImageNet-Sketch",
        source="github.com/HaohanWang/ImageNet-Sketch",
        mark=_wnids,
        faults=_by_synset("", None),
        names=("sketch", "ImageNet-Sketch"),
    ),
    "objectnet": ShiftedSet(
        TITLE="ObjectNet",
        source="objectnet.dev (its licence forbids training and tuning on it)",
        mark=lambda f: (f / "images").is_dir() and not (f / "annotations").is_dir(),
        faults=_objectnet,
        names=("objectnet-1.0", "ObjectNet"),
    ),
    "imagenet-c": ShiftedSet(
        TITLE="ImageNet-C",
        source="github.com/hendrycks/robustness",
        mark=lambda f: (f / CORRUPTIONS[0]).is_dir(),
        faults=_corrupted,
        names=("ImageNet-C", "imagenet_c"),
    ),
    "imagenet-9": ShiftedSet(
        TITLE="ImageNet-9",
        source="github.com/MadryLab/backgrounds_challenge",
        mark=lambda f: (f / "mixed_rand" / "val").is_dir(),
        faults=_backgrounds,
        names=("bg_challenge", "backgrounds_challenge", "in9"),
        found=count_variations,
    ),
}
"""Data set's name -> layout; `mimbench.benchmarks.locations` finds them under --data."""
__all__ = ["CORRUPTIONS", "SETS", "VARIATIONS", "ShiftedSet", "Variation", "classes_of", "synsets"]
