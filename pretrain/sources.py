"""Where images come from: folders, lists, archives, shards, Hugging Face.

Each is read by index, so that any order can be taken up again in the middle.
"""

import os
import re
import tarfile
from itertools import product
from pathlib import Path
from typing import Any, Protocol, cast

from timm.data.dataset_factory import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms.v2 import functional as vision

from mimbench.errors import UserError
from mimbench.images import CorruptImageError
from mimbench.sample import sample_root

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})


class Source(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> bytes | Tensor:
        """Return a whole image file, or an image (3, H, W) that is decoded already."""
        ...

    def name(self, index: int) -> str:
        """Return what a person calls the image."""
        ...


class TimmSource:
    """Any indexed data set that timm's `create_dataset` opens."""

    def __init__(self, name: str, root: Path, split: str) -> None:
        try:
            dataset: Any = create_dataset(name, root=str(root), split=split)
        except (AssertionError, RuntimeError, OSError, ValueError, ImportError) as error:
            reason = str(error) or f"{root} does not exist"
            raise UserError(
                f"cannot open data.name '{name}' at {root} ({split}): {reason}"
            ) from error
        if isinstance(dataset, IterableDataset):
            raise UserError(
                f"'{name}' can only be read from front to back, so a run could not resume exactly; "
                "use a folder, a list, a tar file, wds/ shards or hfds/"
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> bytes | Tensor:
        """Return the file as it lies, or what torchvision's own data sets decode."""
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return vision.pil_to_tensor(self.dataset[index][0].convert("RGB"))
        try:
            file = reader[index][0]
            with file:
                return cast(bytes, file.read())
        except OSError as error:
            raise CorruptImageError(self.name(index), str(error)) from error

    def name(self, index: int) -> str:
        """Return the path as timm knows it."""
        reader = getattr(self.dataset, "reader", None)
        return f"#{index}" if reader is None else str(reader.filename(index, absolute=True))


class ListSource:
    """The official layout: `<split>.txt` with lines `relative/path label`, paths below `<split>/`."""

    def __init__(self, root: Path, split: str) -> None:
        path, self.folder = root / f"{split}.txt", root / split
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(
                f"data.name 'list' wants {path} with lines 'relative/path label': "
                f"{error.strerror or error}"
            ) from error
        # a path may hold blanks, a label does not; lines without a label are paths alone
        self.paths = [re.sub(r"\s+-?\d+$", "", line.strip()) for line in lines if line.strip()]
        if not self.paths:
            raise UserError(f"{path} lists no image")

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> bytes:
        """Return the file."""
        try:
            return (self.folder / self.paths[index]).read_bytes()
        except OSError as error:
            raise CorruptImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Return the path."""
        return str(self.folder / self.paths[index])


class ShardSource:
    """WebDataset shards: tar files, indexed once, so that any image can be read alone."""

    def __init__(self, root: Path, pattern: str) -> None:
        self.shards = expand(root, pattern)
        self.entries: list[tuple[int, int, int, str]] = []
        for number, shard in enumerate(self.shards):
            try:
                with tarfile.open(shard, "r:") as archive:
                    self.entries += [
                        (number, member.offset_data, member.size, member.name)
                        for member in archive
                        if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES
                    ]
            except (OSError, tarfile.TarError) as error:
                raise UserError(f"cannot index the shard {shard}: {error}") from error
        if not self.entries:
            raise UserError(f"no image in {len(self.shards)} shards of {root / pattern}")
        self.files: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, index: int) -> bytes:
        """Return the file's bytes within its shard."""
        number, offset, size, _ = self.entries[index]
        try:
            # each process opens its own, and a read at a place moves no shared position
            key = (os.getpid(), number)
            if key not in self.files:
                self.files[key] = os.open(self.shards[number], os.O_RDONLY)
            return os.pread(self.files[key], size, offset)
        except OSError as error:
            raise CorruptImageError(self.name(index), error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        """Return shard and member."""
        number, _, _, member = self.entries[index]
        return f"{self.shards[number]}:{member}"


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


def open_source(name: str, root: Path | None, split: str) -> Source:
    """Return the images that a config names.

    Args:
        name: '' for a folder or tar file, 'list', 'wds/<pattern>', 'sample', or any other indexed
            name of `timm.data.create_dataset` such as 'hfds/<name>'.
        root: Where the data lies.
        split: The part to take, such as 'train'.
    """
    if name == "sample":
        return TimmSource("", sample_root(root) / "classification", split)
    if root is None:
        raise UserError("data.root is not set; say where the images lie with --data DIR")
    if name == "list":
        return ListSource(root, split)
    if name.lower().startswith("wds/"):
        return ShardSource(root, name[len("wds/") :])
    return TimmSource(name, root, split)
