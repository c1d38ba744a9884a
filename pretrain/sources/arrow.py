"""Hugging Face data sets that lie on this machine: one column of images, read by row."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from mimbench.data.images import CorruptImageError
from mimbench.system.errors import UserError

SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves in a folder: for several splits, for one."""


class ArrowSource:
    """The images of a data set that the package `datasets` reads; labels are not looked at."""

    def __init__(self, name: str, root: Path | None, split: str) -> None:
        """Open the data set; nothing is downloaded.

        Args:
            name: A folder below `root` or by its absolute path (parquet or image files, or what
                `save_to_disk` wrote), else the name of a data set that was fetched before.
            root: The folder, or the cache into which the data set was fetched.
            split: The part to take.
        """
        if importlib.util.find_spec("datasets") is None:
            raise UserError(
                f"data.name 'hfds/{name}' needs the package datasets, which is not installed: "
                "pip install datasets"
            )
        self.label = f"hfds/{name}"
        try:
            table = _load(name, root, split)
            self.column = _image_column(table, self.label)
            self.table = _undecoded(table, self.column)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            place = f" at {root}" if root else ""
            raise UserError(
                f"cannot open data.name '{self.label}'{place} (split {split}): {error}; give a "
                "folder below data.root, or fetch the data set before the run"
            ) from error

    def __len__(self) -> int:
        return len(self.table)

    def load(self, index: int) -> bytes:
        """Return the image file as it is stored."""
        item = self.table[index][self.column]
        if item is None:
            raise CorruptImageError(f"{self.label}#{index}", "the row holds no image")
        if item["bytes"]:
            return item["bytes"]
        try:
            return Path(item["path"]).read_bytes()
        except OSError as error:
            raise CorruptImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Return the row, and the file's name where the data set knows it."""
        path = (self.table[index][self.column] or {}).get("path")
        return f"{self.label}#{index}" + (f" ({path})" if path else "")


def _load(name: str, root: Path | None, split: str) -> Any:
    # the package reads this when it is imported: a run must not depend on a network
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # optional, and slow to import
    import datasets  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    folder = (root or Path()) / name
    if not folder.is_dir():
        return datasets.load_dataset(name, split=split, cache_dir=str(root) if root else None)
    if not any((folder / file).is_file() for file in SAVED):
        return datasets.load_dataset(str(folder.resolve()), split=split)
    found = datasets.load_from_disk(str(folder))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"it has the splits {', '.join(found)}")
        return found[split]
    return found


def _image_column(table: Any, label: str) -> str:
    from datasets import Image  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    found = [name for name, kind in table.features.items() if isinstance(kind, Image)]
    if not found:
        columns = ", ".join(f"{name} ({kind})" for name, kind in table.features.items())
        raise UserError(f"'{label}' has no column of images; it has {columns}")
    return "image" if "image" in found else found[0]


def _undecoded(table: Any, column: str) -> Any:
    from datasets import Image  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    return table.select_columns([column]).cast_column(column, Image(decode=False))
