"""CIFAR-10 and CIFAR-100: the Python version's pickles, unpacked or still in their archive."""

import hashlib
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.data.contents import Splits
from mimbench.data.listed import PLAIN_MARKS, splits_of
from mimbench.data.lists import ImageList
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

SIDE = 32


@dataclass(frozen=True, kw_only=True)
class Version:
    """What differs between the two."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    meta: str
    names: str
    labels: str


TEN = Version(
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    meta="batches.meta",
    names="label_names",
    labels="labels",
)
HUNDRED = Version(
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    meta="meta",
    names="fine_label_names",
    labels="fine_labels",
)


@dataclass(frozen=True)
class ArrayOpener:
    """Opens images of an array (n, 32, 32, 3)."""

    pixels: NDArray[np.uint8]

    def __call__(self, index: int) -> Image.Image:
        """Return image `index`."""
        return Image.fromarray(self.pixels[index])


def read(folder: Path, *, version: Version) -> Splits:
    """Return the splits; the pickles are read as plain data."""
    inner = next(
        (p for p in (folder / version.folder, folder) if (p / version.meta).is_file()), None
    )
    marks = (version.meta, f"{version.folder}/{version.meta}", version.archive)
    return splits_of(folder, lambda _: _published(inner, folder, version), marks)


def _published(inner: Path | None, folder: Path, version: Version) -> Splits:
    files = _read_archive(folder / version.archive, version) if inner is None else {}

    def content(name: str) -> Any:
        # torch, which the interpreter makes arrays with, is slow to import
        from mimbench.data.pickles import read_pickle  # noqa: PLC0415

        source = files[name] if inner is None else inner / name
        found = read_pickle(source, f"{folder / version.archive}:{name}")
        if not isinstance(found, dict):
            raise UserError(f"{folder}: {name} is no mapping")
        # Python 2 wrote the keys, as text or as bytes
        return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in found.items()}

    where = str(inner or folder / version.archive)
    classes = _classes(content(version.meta), version, where)
    train, test = (
        _images([content(n) for n in names], names, classes, version, where)
        for names in (version.train, (version.test,))
    )
    return Splits(train=train, test=test)


def _classes(meta: Mapping[str, Any], version: Version, where: str) -> tuple[str, ...]:
    from mimbench.data.pickles import as_texts  # noqa: PLC0415

    return tuple(as_texts(meta.get(version.names), f"{where}, {version.meta}"))


def _images(
    batches: list[Any],
    names: tuple[str, ...],
    classes: tuple[str, ...],
    version: Version,
    where: str,
) -> ImageList:
    from mimbench.data.pickles import as_array  # noqa: PLC0415

    pixels, labels = [], []
    for batch, name in zip(batches, names, strict=True):
        values = as_array(batch.get("data"), f"{where}, {name}")
        marks = as_array(batch.get(version.labels), f"{where}, {name}")
        if values.dtype != np.uint8 or values.shape != (len(marks), 3 * SIDE * SIDE):
            raise UserError(f"{where}: {name} holds {values.dtype} of shape {values.shape}")
        pixels.append(values.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(marks.astype(np.int64))
    whole, truth = np.ascontiguousarray(np.concatenate(pixels)), np.concatenate(labels)
    if truth.size and not (truth.min() >= 0 and truth.max() < len(classes)):
        raise UserError(f"{where}: a label outside of its {len(classes)} classes")
    stamp = hashlib.sha256(whole.data).hexdigest()
    part = "test" if names == (version.test,) else "train"
    return ImageList(
        names=tuple(f"{classes[y]}/{part}_{i:05d}" for i, y in enumerate(truth)),
        labels=truth,
        classes=classes,
        stamps=(stamp,) * len(truth),
        where=where,
        opener=ArrayOpener(whole),
    )


def _read_archive(path: Path, version: Version) -> dict[str, bytes]:
    """Return the archive's files that matter, by name."""
    wanted = {f"{version.folder}/{name}" for name in (*version.train, version.test, version.meta)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.name in wanted and member.isfile() and member.size < 256 << 20:
                    file = archive.extractfile(member)
                    found[Path(member.name).name] = file.read() if file else b""
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path}: not a readable archive: {error}") from error
    if missing := sorted(name for name in wanted if Path(name).name not in found):
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    return found


def _set(title: str, version: Version, classes: int) -> PublishedSet:
    return PublishedSet(
        title=title,
        read=partial(read, version=version),
        marks=(version.meta, f"{version.folder}/{version.meta}", version.archive, *PLAIN_MARKS),
        counts={"train": 50_000, "test": 10_000, "classes": classes},
        obtain=(
            f"# https://www.cs.toronto.edu/~kriz/{version.archive}\n"
            f"# -> FOLDER/{version.archive} (as it is, or unpacked)"
        ),
        folders=(version.folder, title.lower().replace("-", "")),
    )


SETS = {"cifar10": _set("CIFAR-10", TEN, 10), "cifar100": _set("CIFAR-100", HUNDRED, 100)}
