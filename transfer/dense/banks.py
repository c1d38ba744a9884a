"""What every dense task reads: patch tokens, standardised piece by piece, and the labels of their pixels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimbench.data.label_maps import LabelLayout, LabelMaps, read_label_maps
from mimbench.data.preprocess import Interpolation, Squash
from mimbench.features.bank import cache_root
from mimbench.features.patches import FinalNorm, PatchBank
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, value_digest
from mimbench.system.progress import track
from mimbench.system.runtime import Precision, pick_device
from mimbench.system.seeds import sequence_generator
from mimbench.task import Machine
from transfer.dense.patches import Floats, Labels, patchify

CPU_ROWS, GPU_ROWS = 8192, 262_144
"""Patches of the queries in memory at a time."""
CPU_PIECE = 8 * 2**20
"""Bytes of one piece of the bank on a CPU: it is copied a few times on its way to the search."""
EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Where pictures and labels are, and how patches are made of them."""

    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    labels: LabelLayout = field(default_factory=LabelLayout)
    image_size: int = 224
    """Pictures and label maps are squashed to squares of this side."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"
    storage: Literal["fp32", "fp16", "bf16"] = "fp16"
    train_pictures: int | None = None
    """Use so many training pictures, evenly spread; null uses all."""

    def maps(self) -> tuple[LabelMaps, LabelMaps]:
        """Return the train and val pictures with their label maps."""
        train, val = (read_label_maps(self.data, self.labels, split) for split in ("train", "val"))
        count = len(train.images)
        if self.train_pictures is not None and self.train_pictures < count:
            train = train.subset(np.linspace(0, count - 1, self.train_pictures).astype(np.int64))
        return train, val


class LabelView(Protocol):
    """Cuts a label map as its picture is cut."""

    def labels(self, image: Image.Image, index: int = 0) -> Labels:
        """Return the labels of the view (H, W)."""
        ...

    def key(self) -> dict[str, object]:
        """Return what identifies the view."""
        ...


@dataclass(frozen=True, kw_only=True)
class SquashedLabels:
    """The nearest label at each pixel of the squashed picture."""

    squash: Squash

    def labels(self, image: Image.Image, index: int = 0) -> Labels:
        """Return (size, size)."""
        del index
        side = (self.squash.size, self.squash.size)
        return np.asarray(image.resize(side, Image.Resampling.NEAREST))

    def key(self) -> dict[str, object]:
        """Return what identifies the view."""
        return {"squash": self.squash.size}


def patch_labels(
    maps: LabelMaps, view: LabelView, patch: int, *, root: Path | None = None
) -> Labels:
    """Return the pixels of every patch (pictures, m, patch x patch), mapped from a file made once."""
    key = [maps.images.digest, maps.stamps, maps.first, len(maps.names), maps.ignore_index]
    key += [maps.joined] if maps.joined else []
    name = value_digest([*key, view.key(), patch])[:24]
    path = (root or cache_root().with_name("labels")) / f"{name}.npy"
    if not path.is_file():
        _write_labels(path, maps, view, patch)
    return np.load(path, mmap_mode="r")


def _write_labels(path: Path, maps: LabelMaps, view: LabelView, patch: int) -> None:
    out: Labels | None = None
    with atomic_path(path) as part:
        for index in track(range(len(maps.images)), f"labels of {maps.images.where}"):
            pixels = patchify(maps.settle(view.labels(maps.open(index), index), index), patch)
            if out is None:
                shape = (len(maps.images), *pixels.shape)
                out = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
            out[index] = pixels
        if isinstance(out, np.memmap):
            out.flush()


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """Mean and deviation of each width of some patches, as scikit-learn's StandardScaler has them."""

    mean: Tensor
    deviation: Tensor


class Patches:
    """A bank's tokens as tasks compare them: normed, standardised, float32, a piece at a time."""

    def __init__(
        self, bank: PatchBank, norm: FinalNorm | None, *, block: int = 1, device: str = "auto"
    ) -> None:
        self.bank, self.norm, self.block = bank, norm, block
        self.device = pick_device(device)
        self.scaler: Scaler | None = None

    def at(self, block: int, *, normed: bool) -> "Patches":
        """Return the same bank read at another block, not standardised yet."""
        norm = self.norm if normed else None
        return Patches(self.bank, norm, block=block, device=str(self.device))

    @property
    def rows_at_once(self) -> int:
        """Patches in memory at a time."""
        return GPU_ROWS if self.device.type == "cuda" else CPU_ROWS

    def prepared(self, tokens: Tensor) -> Tensor:
        """Return stored or exact tokens (..., d) as float32 on the device, normed and standardised."""
        if self.norm is not None:
            x = self.norm(tokens)
        else:
            # a copy: what is stored may be mapped
            x = tokens.to(self.device, torch.float32, copy=True)
        if self.scaler is not None:
            x.sub_(self.scaler.mean).div_(self.scaler.deviation)
        return x

    def fit(self, pictures: NDArray[np.int64]) -> Scaler:
        """Return the scaler of the patches of some pictures."""
        self.scaler = None
        width = self.bank.width
        total, squares = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
        count = 0
        for _, tokens in self.of(pictures, at_once=self.piece):
            x = tokens.flatten(0, 1).double()
            total += x.sum(dim=0).cpu()
            squares += x.square().sum(dim=0).cpu()
            count += len(x)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        # a width that never varies stays as it is
        deviation = torch.where(variance > EPS, variance.sqrt(), torch.ones_like(variance))
        return Scaler(
            mean=mean.float().to(self.device), deviation=deviation.float().to(self.device)
        )

    @property
    def piece(self) -> int:
        """Patches of a piece of the bank in memory at a time."""
        return GPU_ROWS if self.device.type == "cuda" else CPU_PIECE // (4 * self.bank.width)

    def of(
        self, pictures: NDArray[np.int64], *, at_once: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield (pictures, prepared tokens (pictures, m, d)) of some pictures, in ascending order."""
        size = max(1, (at_once or self.rows_at_once) // self.bank.spec.per_image)
        for shard in range(self.bank.shards):
            rows = self.bank.rows(shard)
            mine = pictures[(pictures >= rows.start) & (pictures < rows.stop)]
            if not len(mine):
                continue
            tokens = self.bank.shard(shard, self.block)
            for start in range(0, len(mine), size):
                at = mine[start : start + size]
                yield at, self.prepared(tokens[torch.from_numpy(at - rows.start)])


def as_rows(tokens: Tensor, *, unit: bool) -> Floats:
    """Return tokens (..., d) as rows that FAISS reads, of unit length if asked for."""
    rows = tokens.flatten(0, -2)
    if unit:
        # in place: every caller's tokens are its own
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=EPS)
    return np.ascontiguousarray(rows.cpu().numpy(), dtype=np.float32)


def held_out(pictures: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (kept, held out) pictures, a random share of them held out."""
    if pictures < 2:
        raise UserError(f"{pictures} training pictures: at least 2 are needed to hold one out")
    order = sequence_generator(seed, 4217).permutation(pictures)
    count = min(max(1, int(share * pictures)), pictures - 1)
    return np.sort(order[count:]), np.sort(order[:count])


def every(count: int) -> NDArray[np.int64]:
    """Return all indices."""
    return np.arange(count, dtype=np.int64)


def choose_largest(found: Sequence[float]) -> int:
    """Return the place of the largest value, of equal ones the first."""
    return int(np.argmax(found))
