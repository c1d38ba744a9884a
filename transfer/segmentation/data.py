"""The data: which files, which classes, and how mmseg learns about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mimbench.data.label_maps import joined_names
from mimbench.system.errors import UserError
from transfer.segmentation.framework import ADE20KDataset
from transfer.segmentation.protocol import SegmentationConfig

Split = Literal["train", "val"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIX = ".png"
IGNORED = 255
"""What mmseg calls 'not labelled' once a file is loaded."""


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
    joined: tuple[tuple[int, ...], ...] = ()
    """Groups of the files' labels that count as the first of the group."""
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
        if self.joined:
            settle["joined"] = self.groups
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
    def groups(self) -> list[list[int]]:
        """Return the joined labels as they are after loading."""
        return [[label - int(self.reduce_zero_label) for label in group] for group in self.joined]

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
        kept = labels != self.ignore_index
        if self.reduce_zero_label:
            kept &= labels != 0
        settled = np.where(kept, labels - int(self.reduce_zero_label), IGNORED).astype(np.uint8)
        return join_labels(settled, self.groups)


def join_labels(labels: NDArray[np.uint8], groups: list[list[int]]) -> NDArray[np.uint8]:
    """Return labels in which every group's are the first of it."""
    for first, *rest in groups:
        labels = np.where(np.isin(labels, rest), first, labels).astype(np.uint8)
    return labels


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
    names = joined_names(names, config.joined, int(config.reduce_zero_label))
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
        joined=config.joined,
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


def ade20k(config: SegmentationConfig) -> DataSource:
    """Return ADE20K as it is published, without looking at any file."""
    return DataSource(
        root=config.data,
        folders={
            "train": (config.train_images, config.train_labels),
            "val": (config.val_images, config.val_labels),
        },
        suffixes={"train": ".jpg", "val": ".jpg"},
        names=tuple(ADE20KDataset.METAINFO["classes"]),
        palette=[list(colour) for colour in ADE20KDataset.METAINFO["palette"]],
        reduce_zero_label=config.reduce_zero_label,
        ignore_index=config.ignore_index,
    )


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
