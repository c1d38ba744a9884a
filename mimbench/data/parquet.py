"""Images in parquet files as the package `datasets` writes them: unpacked once, then read by place."""

import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimbench.data.lists import ImageList
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, value_digest

LABELS = ("label", "fine_label", "labels", "cls")
"""Names of the label's column, the first that is there."""


@dataclass(frozen=True)
class PackedOpener:
    """Opens images that lie one behind the other in a file."""

    path: Path
    offsets: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        """Return image `index` in RGB."""
        start, stop = self.offsets[index : index + 2].tolist()
        file = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(file, stop - start, start)
        finally:
            os.close(file)
        with Image.open(BytesIO(data)) as image:
            return image.convert("RGB")


def read_parquet(files: list[Path]) -> ImageList:
    """Return the images of a split's files, in order; their bytes are unpacked once into the cache."""
    try:
        # optional: nothing else needs it
        import pyarrow.parquet as pq  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{files[0]}: reading parquet needs the package pyarrow, which is not installed: "
            "pip install pyarrow"
        ) from error
    stamps = [f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files]
    try:
        opened = [pq.ParquetFile(f) for f in files]
        picture, label, classes = _columns(opened[0], files[0])
        labels = np.concatenate(
            [np.asarray(f.read(columns=[label])[label].to_pylist(), dtype=np.int64) for f in opened]
        )
        folder = _cache() / value_digest([str(files[0].resolve().parent), stamps])[:24]
        opener = _unpacked(folder, opened, picture)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{files[0]}: not the parquet of labelled images: {error}") from error
    names = classes or tuple(str(i) for i in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(names):
        raise UserError(f"{files[0]}: a label outside of its {len(names)} classes")
    return ImageList(
        names=tuple(f"{names[y]}/{i:08d}" for i, y in enumerate(labels)),
        labels=labels,
        classes=names,
        stamps=tuple(value_digest(stamps) for _ in labels),
        where=str(files[0].parent),
        opener=opener,
    )


def _columns(file: Any, path: Path) -> tuple[str, str, tuple[str, ...]]:
    """Return the columns of images and labels, and the classes that `datasets` wrote beside them."""
    schema = file.schema_arrow
    held = [n for n in schema.names if {"bytes", "path"} <= set(_fields(schema.field(n).type))]
    label = next((name for name in LABELS if name in schema.names), None)
    if not held or label is None:
        raise UserError(
            f"{path}: has the columns {', '.join(schema.names)}; expected one of images (bytes, path) "
            f"and one of {', '.join(LABELS)}"
        )
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return held[0], label, tuple(map(str, names)) if isinstance(names, list) else ()


def _fields(kind: Any) -> list[str]:
    return [kind.field(i).name for i in range(kind.num_fields)] if kind.num_fields else []


def _unpacked(folder: Path, opened: list[Any], picture: str) -> PackedOpener:
    path, index = folder / "images.bin", folder / "offsets.npy"
    if not index.is_file():
        sizes = [0]
        with atomic_path(path) as part, part.open("wb") as out:
            for file in opened:
                for batch in file.iter_batches(batch_size=64, columns=[picture]):
                    for item in batch.column(0).to_pylist():
                        if not item or not item["bytes"]:
                            raise ValueError("a row without the bytes of its image")
                        out.write(item["bytes"])
                        sizes.append(len(item["bytes"]))
        with atomic_path(index) as part, part.open("wb") as out:
            np.save(out, np.cumsum(np.array(sizes, dtype=np.int64)))
    return PackedOpener(path, np.load(index, allow_pickle=False))


def _cache() -> Path:
    if chosen := os.environ.get("MIMBENCH_CACHE"):
        return Path(chosen) / "unpacked"
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "mimbench" / "unpacked"
