"""Whether the label files are what the recipe thinks: read before any training."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mimbench.system.errors import UserError
from mimbench.system.progress import track
from transfer.segmentation.data import DataSource, Split

logger = logging.getLogger(__name__)

Counts = NDArray[np.int64]

CHECKED = 1_000
"""Label files read in each split before training; each one is checked again when it is used."""
SHIFT_COST = (
    "Labels one off in one split give an mIoU of 0 (no pixel can agree); one off in both, "
    "a class is lost and every name is wrong"
)
SUSPICIOUS = 0.5
"""Share of the listed class frequencies that may disagree before a shift is looked for."""


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


def check_labels(source: DataSource, split: Split, *, show: bool = True) -> LabelReport:
    """Read label files of a split; refuse stray values, and say so when labels look one off."""
    pairs = source.pairs(split)
    step = max(1, -(-len(pairs) // CHECKED))
    values = np.zeros(256, dtype=np.int64)
    chosen = pairs[::step]
    for image, path in track(chosen, f"check {split} labels") if show else chosen:
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
