"""Where images come from: folders, lists, archives, shards, Hugging Face.

Each is read by index, so that any order can be taken up again in the middle.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, cast

from timm.data.dataset_factory import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.transforms.v2 import functional as vision

from mimbench.data.images import CorruptImageError
from mimbench.sample import sample_root
from mimbench.system.errors import UserError
from pretrain.sources.archives import ArchiveSource, expand
from pretrain.sources.arrow import ArrowSource

VISITS = 4
"""How often a scene of the sample data comes beside its cards: each time another window of it."""


class ImageSource(Protocol):
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


class EvenSubset:
    """Some of a source's images, spread evenly over their order."""

    def __init__(self, source: ImageSource, images: int) -> None:
        if not 0 < images <= len(source):
            raise UserError(f"data.images is {images}, but there are {len(source)} images")
        self.source, self.images = source, images

    def __len__(self) -> int:
        return self.images

    def load(self, index: int) -> bytes | Tensor:
        """Return the image as the whole source gives it."""
        return self.source.load(self._place(index))

    def name(self, index: int) -> str:
        """Return its name there."""
        return self.source.name(self._place(index))

    def _place(self, index: int) -> int:
        return index * len(self.source) // self.images


class JoinedSource:
    """Several sources, one after another."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = sources
        self.ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self.ends[-1]

    def load(self, index: int) -> bytes | Tensor:
        """Return the image as its own source gives it."""
        source, place = self._place(index)
        return source.load(place)

    def name(self, index: int) -> str:
        """Return its name there."""
        source, place = self._place(index)
        return source.name(place)

    def _place(self, index: int) -> tuple[ImageSource, int]:
        which = bisect_right(self.ends, index)
        return self.sources[which], index - (self.ends[which - 1] if which else 0)


def open_source(name: str, root: Path | None, split: str) -> ImageSource:
    """Return the images that a config names.

    Args:
        name: '' for a folder or tar file, 'list', 'wds/<pattern>', 'hfds/<name>', 'sample', 'scenes',
            'sample+scenes', or any other indexed name of `timm.data.create_dataset`.
        root: Where the data lies.
        split: The part to take, such as 'train'.
    """
    if name == "sample":
        return TimmSource("", sample_root(root) / "classification", split)
    if name == "scenes":
        return TimmSource("", sample_root(root) / "coco", f"{split}2017")
    if name == "sample+scenes":
        cards, scenes = (open_source(part, root, split) for part in name.split("+"))
        return JoinedSource([cards, *VISITS * [scenes]])
    kind, _, rest = name.partition("/")
    if kind.lower() == "hfds":
        return ArrowSource(rest, root, split)
    if root is None:
        raise UserError("data.root is not set; say where the images lie with --data DIR")
    if name == "list":
        return ListSource(root, split)
    if kind.lower() == "wds":
        return ArchiveSource(expand(root, rest))
    if not name and root.is_file():
        return ArchiveSource([root])
    return TimmSource(name, root, split)
