"""Where labelled images come from: an ImageFolder, or any of timm's data sets that can be indexed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data.dataset_factory import create_dataset
from torch import Tensor

from mimbench.data.lists import ImageList, check_classes, read_folder
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest

STREAMED = ("tfds/", "wds/", "hfids/")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the images are: an ImageFolder, or any of timm's data sets that can be indexed."""

    name: str = "folder"
    """`folder`; `tar` for train.tar and val.tar; or a name for timm.data.create_dataset."""
    train: str = "train"
    val: str = "val"

    def open(self, data: Path) -> tuple[ImageList, ImageList]:
        """Return the train and val lists; their classes must be the same."""
        train, val = (self.split(data, split) for split in (self.train, self.val))
        check_classes(train, val)
        return train, val

    def split(self, data: Path, split: str) -> ImageList:
        """Return one list, of `train` or `val`."""
        if self.name == "folder":
            return read_folder(data, split)
        return read_timm(self.name, data, split)


@dataclass(frozen=True)
class TimmOpener:
    """Opens images of a timm data set."""

    dataset: Any

    def __call__(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        # past timm's own __getitem__, which puts another image in the place of a damaged one
        reader = getattr(self.dataset, "reader", None)
        image = self.dataset[index][0] if reader is None else Image.open(reader[index][0])
        return image.convert("RGB")


def read_timm(name: str, data: Path, split: str) -> ImageList:
    """Return a split of a data set that timm's factory knows, if it can be indexed."""
    if name.startswith(STREAMED):
        raise UserError(
            f"source '{name}' is streamed, and a stream has no fixed order to score every image "
            "once; use an indexed form of it (hfds/..., torch/..., a tar file or a folder)"
        )
    kind, root = ("", data / f"{split}.tar") if name == "tar" else (name, data)
    try:
        dataset: Any = create_dataset(kind, root=str(root), split=split)
    except (AssertionError, RuntimeError, ValueError, OSError, ImportError) as error:
        raise UserError(
            f"timm cannot open source '{name}' split '{split}' in {data}: {error}"
        ) from error
    labels = _timm_labels(dataset, name)
    classes = _timm_classes(dataset, labels)
    reader = getattr(dataset, "reader", None)
    if reader is None:
        names = tuple(f"{split}/{i:08d}" for i in range(len(labels)))
    else:
        names = tuple(str(reader.filename(i)) for i in range(len(labels)))

    return ImageList(
        names=names,
        labels=labels,
        classes=classes,
        stamps=_stamps(dataset, root, len(labels)),
        where=f"{data}:{name}:{split}",
        opener=TimmOpener(dataset),
    )


def _stamps(dataset: Any, root: Path, count: int) -> tuple[str, ...]:
    """Return what tells changed images from the old ones, as finely as the source shows it."""
    reader = getattr(dataset, "reader", None)
    found = [getattr(holder, "samples", None) for holder in (reader, dataset)]
    rows = next((rows for rows in found if isinstance(rows, list)), [])
    paths = [row[0] for row in rows if isinstance(row, tuple)]
    if len(paths) == count and all(isinstance(p, str) and Path(p).is_file() for p in paths):
        return tuple(_stamp(Path(p)) for p in paths)
    return (_whole_stamp(dataset, reader, root),) * count


def _whole_stamp(dataset: Any, reader: Any, root: Path) -> str:
    """Return one stamp for all images: of the pixels held, the library's fingerprint, or the files."""
    pixels = getattr(dataset, "data", None)
    if isinstance(pixels, (np.ndarray, Tensor)):
        return hashlib.sha256(np.ascontiguousarray(np.asarray(pixels)).data).hexdigest()
    fingerprint = getattr(getattr(reader, "dataset", None), "_fingerprint", None)
    if fingerprint is not None:
        return str(fingerprint)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    return value_digest([[str(p.relative_to(root.parent)), _stamp(p)] for p in files])


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def _timm_labels(dataset: Any, name: str) -> NDArray[np.int64]:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        for field in ("targets", "labels", "_labels", "_samples"):
            values = getattr(dataset, field, None)
            if values is not None:
                rows = [v[-1] if isinstance(v, tuple) else v for v in values]
                return np.asarray(rows, dtype=np.int64)
        raise UserError(f"source '{name}' does not list its labels; use its folder form")
    targets = getattr(reader, "targets", None)
    if targets is not None:
        return np.array(targets, dtype=np.int64)
    if hasattr(reader, "samples"):
        return np.array([sample[-1] for sample in reader.samples], dtype=np.int64)
    column = reader.dataset[getattr(reader, "label_key", "label")]
    return np.array(column, dtype=np.int64)


def _timm_classes(dataset: Any, labels: NDArray[np.int64]) -> tuple[str, ...]:
    for holder in (dataset, getattr(dataset, "reader", None)):
        for field in ("class_to_idx", "class_name_to_idx"):
            if index := getattr(holder, field, None):
                return tuple(sorted(index, key=lambda name: index[name]))
    return tuple(str(label) for label in range(int(labels.max()) + 1))
