"""What data a run saw, by content: names, sizes, lists and labels whole, images whole or sampled.

The place of a file is not its identity: the same files elsewhere are the same data, and another list
or image at the same place is not. Folders and tar files of the same images have the same digest.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mimbench.data.sets import find_set, published
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest

WHOLE = 256 * 2**20
"""Data sets of no more bytes are read whole."""
SAMPLED = 512
"""Of larger ones so many files are, evenly spread over the sorted names, beside every list."""
LISTS = frozenset({".json", ".txt", ".csv", ".tsv", ".xml", ".yaml", ".mat", ".pkl"})
"""Files that hold labels or names: always read whole."""


@dataclass(frozen=True, kw_only=True)
class DataDigest:
    """The identity of a data set, and how much of it was read for it."""

    digest: str = ""
    files: int = 0
    size: int = 0
    """Bytes."""
    read: str = ""
    """`whole`, or how many files' content is in the digest; names and sizes always are."""


class Item(NamedTuple):
    """One file, in a folder or a tar file."""

    size: int
    source: Path
    start: int | None = None
    """Offset in a tar file; None: the source itself."""

    def content(self) -> str:
        """Return the digest of the bytes."""
        digest = hashlib.sha256()
        with self.source.open("rb") as file:
            file.seek(self.start or 0)
            left = self.size
            while left and (block := file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()


Parts = tuple[tuple[str, Path], ...]
"""Name of each part of a data set, and where it lies."""


def read_parts(parts: Parts) -> DataDigest:
    """Return the digest of parts of a data set; on a large one this takes minutes."""
    return _digest(
        {f"{name}/{inner}": file for name, path in parts for inner, file in _files(path)}
    )


def data_digest(
    folder: Path,
    config: Mapping[str, Any],
    *,
    whole: bool = False,
    read: Callable[[Parts], DataDigest] = read_parts,
) -> DataDigest:
    """Return the digest of the parts of a data folder that a configuration names.

    Args:
        folder: The data set.
        config: A task's configuration: every text in it that names something in the folder is a part;
            "." is all of it.
        whole: The folder's every file is a part, whatever the configuration names.
        read: Reads the parts; whoever asks for several configurations at once need not read any twice.
    """
    parts = []
    for name in ["."] if whole else sorted(set(_texts(config))):
        for path in (folder / name, folder / f"{name}.tar", *_usual(folder, name)):
            if name and path.exists() and (name == "." or _inside(path, folder)):
                parts.append((name, path))
                break
    try:
        return read(tuple(parts))
    except OSError as error:
        raise UserError(f"cannot read the data in {folder}: {error}") from error


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            # the folder itself is not a part of it
            yield from () if key == "data" else _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _usual(folder: Path, name: str) -> list[Path]:
    """Return where a published set of this name lies under its archive's own name."""
    found = find_set(name, folder) if name in published() else None
    return [found] if found else []


def _inside(path: Path, folder: Path) -> bool:
    if not path.is_relative_to(folder):  # a list of its own place: its content is in the protocol
        return False
    return path.resolve() != folder.resolve() and ".." not in path.relative_to(folder).parts


def _files(path: Path) -> Iterator[tuple[str, Item]]:
    if path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                parts = [p for p in Path(member.name).parts if p not in (".", path.stem)]
                if member.isfile():
                    yield "/".join(parts), Item(member.size, path, member.offset_data)
    elif path.is_file():
        yield "", Item(path.stat().st_size, path)
    else:
        for file in sorted(path.rglob("*")):
            inner = file.relative_to(path)
            if not any(part.startswith(".") for part in inner.parts) and file.is_file():
                yield inner.as_posix(), Item(file.stat().st_size, file)


def _digest(items: Mapping[str, Item]) -> DataDigest:
    names = sorted(items)
    size = sum(item.size for item in items.values())
    whole = size <= WHOLE or len(names) <= SAMPLED
    step = 1 if whole else -(-len(names) // SAMPLED)
    picked = {*names[::step], *(n for n in names if Path(n).suffix.lower() in LISTS)}
    rows = [[n, items[n].size, items[n].content() if n in picked else ""] for n in names]
    return DataDigest(
        digest=value_digest(rows)[:16],
        files=len(names),
        size=size,
        read="whole" if whole else f"{len(picked)} of {len(names)} files",
    )
