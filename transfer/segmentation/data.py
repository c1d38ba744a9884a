"""The data: which files, which classes, and whether the labels are what the recipe thinks."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimbench.errors import UserError
from mimbench.progress import track
from transfer.segmentation.framework import ADE20KDataset
from transfer.segmentation.settings import SegmentationConfig

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
Counts = NDArray[np.int64]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIX = ".png"
CHECKED = 1_000
"""Label files read in each split before training; each one is checked again when it is used."""
IGNORED = 255
"""What mmseg calls 'not labelled' once a file is loaded."""
SHIFT_COST = (
    "Labels one off in one split give an mIoU of 0 (no pixel can agree); one off in both, "
    "a class is lost and every name is wrong"
)
SUSPICIOUS = 0.5
"""Share of the listed class frequencies that may disagree before a shift is looked for."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Pairs of images and label maps for two splits, and the classes that labels count."""

    root: Path
    folders: dict[Split, tuple[str, str]]
    suffixes: dict[Split, str]
    names: tuple[str, ...]
    palette: list[list[int]]
    reduce_zero_label: bool
    ignore_index: int
    listed: tuple[float, ...] = ()
    """Pixel share of each class by objectInfo150.txt, where there is one."""

    def dataset(self, split: Split, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        """Return mmseg's entry for a split: ADE20KDataset itself where the classes are its own."""
        images, labels = self.folders[split]
        entry: dict[str, Any] = {
            "type": "ADE20KDataset" if self.is_ade else "BaseSegDataset",
            "data_root": str(self.root),
            "data_prefix": {"img_path": images, "seg_map_path": labels},
            "img_suffix": self.suffixes[split],
            "seg_map_suffix": LABEL_SUFFIX,
            "reduce_zero_label": self.reduce_zero_label,
            "pipeline": self._settled(pipeline),
        }
        if not self.is_ade:
            entry["metainfo"] = {"classes": list(self.names), "palette": self.palette}
        return entry

    def _settled(self, pipeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
        settle = {
            "type": "SettleLabels",
            "classes": len(self.names),
            "ignore_index": self.ignore_index,
            "reduce_zero_label": self.reduce_zero_label,
        }
        out = []
        for step in pipeline:
            if step["type"] == "TestTimeAug":
                # each group of transforms holds alternatives, so settling is a group of its own
                loading = step["transforms"].index([{"type": "LoadAnnotations"}])
                groups = list(step["transforms"])
                groups.insert(loading + 1, [settle])
                out.append({**step, "transforms": groups})
            else:
                out += [step, settle] if step["type"] == "LoadAnnotations" else [step]
        return out

    @property
    def is_ade(self) -> bool:
        """The labels are ADE20K's: 1 to 150, 0 for not labelled."""
        return len(self.names) == len(ADE20KDataset.METAINFO["classes"]) and self.reduce_zero_label

    def pairs(self, split: Split) -> list[tuple[Path, Path]]:
        """Return image and label files of a split, in mmseg's order."""
        images, labels = (self.root / folder for folder in self.folders[split])
        suffix = self.suffixes[split]
        found = sorted(p for p in images.rglob(f"*{suffix}") if p.is_file())
        return [
            (image, (labels / image.relative_to(images)).with_suffix(LABEL_SUFFIX))
            for image in found
        ]

    def loaded(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a label map as mmseg sees it after loading: classes from 0, 255 for the rest."""
        if not self.reduce_zero_label:
            return np.where(labels == self.ignore_index, IGNORED, labels).astype(np.uint8)
        kept = (labels != 0) & (labels != self.ignore_index)
        return np.where(kept, labels - 1, IGNORED).astype(np.uint8)


def open_source(config: SegmentationConfig) -> DataSource:
    """Return the data that a configuration names; folders, names and pairs are checked here."""
    root = config.data
    folders: dict[Split, tuple[str, str]] = {
        "train": (config.train_images, config.train_labels),
        "val": (config.val_images, config.val_labels),
    }
    for folder in (part for pair in folders.values() for part in pair):
        if not (root / folder).is_dir():
            raise UserError(
                f"{root} has no folder '{folder}'; ADE20K's layout is images/ and annotations/ with "
                "training/ and validation/ in each; name other folders with train_images=, "
                "train_labels=, val_images=, val_labels="
            )
    names, listed = _class_names(root, config.classes)
    palette = [list(colour) for colour in ADE20KDataset.METAINFO["palette"]]
    if len(names) > len(palette):
        raise UserError(f"{len(names)} classes; the palette and 8-bit labels allow {len(palette)}")
    source = DataSource(
        root=root,
        folders=folders,
        suffixes={split: _suffix(root / images) for split, (images, _) in folders.items()},
        names=names,
        palette=palette[: len(names)],
        reduce_zero_label=config.reduce_zero_label,
        ignore_index=config.ignore_index,
        listed=listed,
    )
    for split in folders:
        missing = [label for _, label in source.pairs(split) if not label.is_file()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(source.pairs(split))} pictures in {root / folders[split][0]} "
                f"have no label map, for example {missing[0]}"
            )
    return source


def _suffix(folder: Path) -> str:
    found = {p.suffix for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES}
    if len(found) != 1:
        what = f"pictures of several kinds ({', '.join(sorted(found))})" if found else "no pictures"
        raise UserError(f"{folder} holds {what}; expected one kind of {', '.join(SUFFIXES)}")
    return found.pop()


def _class_names(root: Path, file: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return class names, and ADE20K's table of pixel shares where there is one."""
    if file:
        path = root / file
        if not path.is_file():
            raise UserError(f"the class list {path} does not exist")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        names = tuple(line for line in lines if line)
        if len(names) < 2 or len(set(names)) != len(names):
            raise UserError(f"{path} should name two or more different classes, one on each line")
        return names, ()
    known = tuple(ADE20KDataset.METAINFO["classes"])
    table = root / "objectInfo150.txt"
    if not table.is_file():
        return known, ()
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()[1:] if line]
    if len(rows) != len(known) or any(len(row) < 5 for row in rows):
        raise UserError(f"{table} should list {len(known)} classes in five columns")
    names = tuple(row[-1].split(",")[0].strip() for row in rows)
    return names, tuple(float(row[1]) for row in rows)


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return a label map's values as they stand in the file; only 8-bit, one-channel maps are read."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{path} has mode {image.mode}; a label map has one 8-bit channel (L or P)"
                )
            return np.asarray(image)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the label map {path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What the label files hold."""

    split: Split
    files: int
    occurring: int
    unlabelled: float
    """Share of pixels, in percent."""
    suspicion: str = ""


def check_labels(source: DataSource, split: Split) -> LabelReport:
    """Read label files of a split; refuse stray values, and say so when labels look one off."""
    pairs = source.pairs(split)
    step = max(1, -(-len(pairs) // CHECKED))
    values = np.zeros(256, dtype=np.int64)
    chosen = pairs[::step]
    for image, path in track(chosen, f"check {split} labels"):
        labels = read_labels(path)
        with Image.open(image) as picture:
            if picture.size != (labels.shape[1], labels.shape[0]):
                raise UserError(f"{image} has size {picture.size}, its labels {labels.shape[::-1]}")
        counts = np.bincount(labels.ravel(), minlength=256)
        stray = _stray(source, counts)
        if len(stray):
            raise UserError(_stray_message(source, path, stray))
        values += counts
    report = LabelReport(
        split=split,
        files=len(chosen),
        occurring=int((_class_counts(source, values) > 0).sum()),
        unlabelled=100 * float(1 - _class_counts(source, values).sum() / max(1, values.sum())),
        suspicion=_suspicion(source, values),
    )
    _say(source, report)
    return report


def _say(source: DataSource, report: LabelReport) -> None:
    logger.info(
        "%s labels: %d files read, %d of %d classes occur, %.1f %% of pixels not labelled",
        report.split,
        report.files,
        report.occurring,
        len(source.names),
        report.unlabelled,
    )
    if report.suspicion:
        logger.warning(
            "%s labels look wrong: %s. %s; check reduce_zero_label (now %s) and the class list",
            report.split,
            report.suspicion,
            SHIFT_COST,
            str(source.reduce_zero_label).lower(),
        )


def _class_counts(source: DataSource, values: Counts) -> Counts:
    """Return pixels of each class from pixels of each value in the files."""
    first = int(source.reduce_zero_label)
    counts = values[first : first + len(source.names)].copy()
    if first <= source.ignore_index < first + len(source.names):
        counts[source.ignore_index - first] = 0
    return counts


def _stray(source: DataSource, counts: Counts) -> NDArray[np.intp]:
    known = np.zeros(256, dtype=bool)
    known[: len(source.names) + int(source.reduce_zero_label)] = True
    known[source.ignore_index] = True
    return np.flatnonzero((counts > 0) & ~known)


def _stray_message(source: DataSource, path: Path, stray: Sequence[int] | NDArray[np.intp]) -> str:
    first = int(source.reduce_zero_label)
    last = first + len(source.names) - 1
    message = (
        f"{path} holds label {int(stray[0])}; with {len(source.names)} classes and "
        f"reduce_zero_label={str(source.reduce_zero_label).lower()} labels run from {first} to "
        f"{last}, and {source.ignore_index} is not labelled"
    )
    if stray[0] == last + 1:
        message += (
            f"; the labels look shifted by one. {SHIFT_COST}; check reduce_zero_label and the "
            "class list"
        )
    return message


def _suspicion(source: DataSource, values: Counts) -> str:
    """Return what speaks for labels that are one off, or ''."""
    first, count = int(source.reduce_zero_label), len(source.names)
    counts = _class_counts(source, values)
    if not counts.sum():
        return "no pixel carries a class"
    if source.listed:
        return _against_listed(np.asarray(source.listed), values, first)
    if first and values[0] == 0 and values[count] == 0:
        return f"label 0 and label {count} never occur, so classes may start at 0 in the files"
    if first and values[count] == 0 and values[0] > 0.5 * values.sum():
        return f"label 0 covers most pixels and label {count} never occurs, so 0 may be a class"
    if not first and values[0] == 0 and values[count - 1] > 0:
        return "label 0 never occurs although it should be the first class"
    return ""


def _against_listed(listed: NDArray[np.float64], values: Counts, first: int) -> str:
    """Compare class frequencies with the data set's own table, at their place and one off."""
    distances = {}
    for shift in (-1, 0, 1):
        start = first + shift
        counts = np.zeros(len(listed))
        part = values[max(0, start) : start + len(listed)]
        counts[max(0, -start) : max(0, -start) + len(part)] = part
        shares = counts / max(1.0, counts.sum())
        distances[shift] = 0.5 * np.abs(shares - listed / max(1e-12, listed.sum())).sum()
    best = min(distances, key=lambda shift: distances[shift])
    if best and distances[0] > SUSPICIOUS and distances[best] < 0.7 * distances[0]:
        return (
            f"class frequencies agree with objectInfo150.txt when labels are read {best:+d} "
            f"(disagreement {distances[best]:.2f}), not as they are ({distances[0]:.2f})"
        )
    return ""


def label_files(source: DataSource, split: Split) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Yield each image's path and its label map as mmseg sees it."""
    for image, path in source.pairs(split):
        yield image, source.loaded(read_labels(path))
