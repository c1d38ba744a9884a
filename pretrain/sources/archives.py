"""Images inside tar files, one or many shards: indexed once, so that any of them can be read alone."""

import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from mimbench.data.images import CorruptImageError
from mimbench.data.lists import SUFFIXES
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

OPEN_FILES = 64
"""Shards that a process keeps open: a data set may have more than a process may open."""


class TarEntry(NamedTuple):
    """One image's place."""

    shard: int
    offset: int
    size: int
    name: str


class ArchiveSource:
    """The images of tar files (WebDataset shards, one archive, or archives within an archive)."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self.entries: list[TarEntry] = []
        for number, shard in enumerate(shards):
            try:
                with tarfile.open(shard, "r:") as archive:
                    self.entries += (TarEntry(number, *found) for found in members(archive))
            except (OSError, tarfile.TarError) as error:
                raise UserError(f"cannot index the tar file {shard}: {error}") from error
        if not self.entries:
            raise UserError(f"no image in {first_few(shards, 1)}")
        self.files: OrderedDict[tuple[int, int], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int) -> bytes:
        """Return the file's bytes within its archive."""
        entry = self.entries[index]
        try:
            # a read at a place moves no position that another process may share
            return os.pread(self._open(entry.shard), entry.size, entry.offset)
        except OSError as error:
            raise CorruptImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Return archive and member."""
        entry = self.entries[index]
        return f"{self.shards[entry.shard]}:{entry.name}"

    def _open(self, shard: int) -> int:
        # each process opens its own
        key = (os.getpid(), shard)
        if key not in self.files:
            self.files[key] = os.open(self.shards[shard], os.O_RDONLY)
            if len(self.files) > OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
        self.files.move_to_end(key)
        return self.files[key]


def members(archive: tarfile.TarFile, start: int = 0) -> Iterator[tuple[int, int, str]]:
    """Yield offset, size and name of each image, those of archives within the archive too.

    Args:
        archive: An open tar file.
        start: Where it begins in the file that will be read.
    """
    for member in archive:
        suffix = Path(member.name).suffix.lower()
        if member.isfile() and suffix in SUFFIXES:
            yield start + member.offset_data, member.size, member.name
        elif member.isfile() and suffix == ".tar":
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                for offset, size, name in members(inner, start + member.offset_data):
                    yield offset, size, f"{member.name}:{name}"


def expand(root: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern with number ranges `{000..127}`, alternatives `{a,b}`, `*`."""
    parts = [_alternatives(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
    names = ["".join(choice) for choice in product(*parts)]
    found = [path for name in names for path in _matches(root, name)]
    if not found:
        raise UserError(f"no shard matches {root / pattern}")
    return found


def _alternatives(part: str) -> list[str]:
    if not part.startswith("{"):
        return [part]
    span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part)
    if span is None:
        return part[1:-1].split(",")
    first, last = span.groups()
    return [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]


def _matches(root: Path, name: str) -> list[Path]:
    if any(sign in name for sign in "*?["):
        return sorted(root.glob(name))
    path = root / name
    if not path.is_file():
        raise UserError(f"the shard {path} does not exist")
    return [path]
