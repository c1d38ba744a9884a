"""Features computed once: a bank of shards on disk that any task may read, and no other may reuse."""

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Pixels
from mimbench.model import Network, Weights
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import cache_folder, value_digest
from mimbench.system.runtime import Precision
from mimbench.vit.backbone import Backbone

logger = logging.getLogger(__name__)

VERSION = 1
"""Raise it with every change that moves a stored feature."""
SHARD = 1024
CHECKED = 8192
"""Images of which a half-precision bank also keeps the exact features, to state the effect."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Choice = Literal["cls", "avg", "cls+avg", "cls4", "avg4", "cls4+avg"]
"""Class token, mean of the patches, both; either of the last four blocks; class tokens of four + mean."""
PARTS: dict[str, tuple[str, ...]] = {
    "cls": ("cls.1",),
    "avg": ("avg.1",),
    "cls+avg": ("cls.1", "avg.1"),
    "cls4": ("cls.4", "cls.3", "cls.2", "cls.1"),
    "avg4": ("avg.4", "avg.3", "avg.2", "avg.1"),
    "cls4+avg": ("cls.4", "cls.3", "cls.2", "cls.1", "avg.1"),
}
"""Names of stored vectors, joined in this order; `.n` counts blocks from the end."""


def cache_root() -> Path:
    """Return the folder of feature banks."""
    return cache_folder() / "features"


@dataclass(frozen=True, kw_only=True)
class BankSpec:
    """What is computed for each image, and how it is kept."""

    preprocess: Pixels
    blocks: int = 4
    """Last blocks kept (fewer where the model is shallower)."""
    storage: Literal["fp32", "fp16", "bf16"] = "fp32"
    precision: Precision = "fp32"
    """Of the forward pass."""
    raw: bool = False
    """Also keep every vector before the final norm, as raw.cls.n and raw.avg.n."""

    def key(self, weights: Weights, images: ImageList) -> dict[str, Any]:
        """Return everything that may move a stored number: banks differ if any of it does."""
        return {
            "version": VERSION,
            "weights": weights.digest,
            "which": weights.which,
            "spec": weights.spec.to_json(),
            # a bank without raw vectors keeps the key that it had before there were any
            "bank": {k: v for k, v in to_mapping(self).items() if k != "raw" or v},
            "images": images.digest,
            "count": len(images),
            "shard": SHARD,
        }


def raw_vectors(network: Network, images: Tensor, blocks: int) -> dict[str, Tensor]:
    """Return what a plain ViT's `vectors` are, and the same before the final norm as raw.*."""
    if not isinstance(network, Backbone):
        raise UserError("features before the final norm are kept of plain ViTs only")
    depth = network.spec.depth
    wanted = list(range(depth - min(blocks, depth), depth))
    out = network.vectors(images, blocks)
    for block, found in zip(wanted, network.blocks(images, wanted, norm=False), strict=True):
        out[f"raw.cls.{depth - block}"] = found.cls
        out[f"raw.avg.{depth - block}"] = found.patches.mean(dim=(1, 2))
    return out


def require_parts(vectors: Container[str], choice: str) -> None:
    """Raise `UserError` unless a model has every vector that the choice is made of."""
    lacking = [part for part in PARTS[choice] if part not in vectors]
    if lacking:
        raise UserError(
            f"features '{choice}' need {', '.join(lacking)}, which this model is too shallow for (or "
            "whose blocks have other widths); choose features of the last block (cls, avg, cls+avg)"
        )


def join(vectors: dict[str, Tensor], choice: str) -> Tensor:
    """Return the chosen features (b, d') from named vectors."""
    require_parts(vectors, choice)
    return torch.cat([vectors[part] for part in PARTS[choice]], dim=-1)


@dataclass(frozen=True, kw_only=True)
class FeatureBank:
    """The features of one image list, on disk."""

    folder: Path
    images: ImageList
    spec: BankSpec

    @property
    def shards(self) -> int:
        """Number of shard files of the whole bank."""
        return -(-len(self.images) // SHARD)

    def path(self, shard: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"{shard:05d}.safetensors"

    def rows(self, shard: int) -> range:
        """Return the image indices of a shard."""
        return range(shard * SHARD, min((shard + 1) * SHARD, len(self.images)))

    @property
    def exact_step(self) -> int:
        """Of every so many images a half-precision bank also keeps exact features."""
        return check_step(len(self.images))

    def compute(self, network: Network, images: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return cls.n and avg.n of the last blocks, and where asked for the raw ones."""
        del rows
        if self.spec.raw:
            return raw_vectors(network, images, self.spec.blocks)
        return network.vectors(images, self.spec.blocks)

    def load(self, choice: str) -> Tensor:
        """Return the chosen features of every image, (n, d) float32, in the list's order."""
        out: Tensor | None = None
        for shard in range(self.shards):
            part = join(self._read(shard, PARTS[choice]), choice)
            if out is None:
                out = torch.empty(len(self.images), part.shape[1])
            out[self.rows(shard).start : self.rows(shard).stop] = part
        if out is None:
            raise UserError(f"{self.images.where} holds no image")
        return out

    def vectors(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return named vectors of every image, as far as the model is deep enough for them."""
        shards = [self._read(shard, names) for shard in range(self.shards)]
        return {name: torch.cat([s[name] for s in shards]) for name in names if name in shards[0]}

    def exact(self, choice: str) -> tuple[NDArray[np.int64], Tensor]:
        """Return evenly spread images and their float32 features, also kept in half banks."""
        step = self.exact_step
        rows, parts = [], []
        for shard in range(self.shards):
            at = [i for i in self.rows(shard) if i % step == 0]
            found = self._read(shard, [f"exact.{p}" for p in PARTS[choice]])
            parts.append(join({k.removeprefix("exact."): v for k, v in found.items()}, choice))
            rows += at
        return np.array(rows, dtype=np.int64), torch.cat(parts)

    def _read(self, shard: int, names: Sequence[str]) -> dict[str, Tensor]:
        path = self.path(shard)
        try:
            with safe_open(path, "pt") as file:
                own = set(file.keys())
                return {name: file.get_tensor(name).float() for name in names if name in own}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} was removed or damaged since it was written ({error}); start the same "
                "command again: what is missing is computed again"
            ) from error

    def missing(self) -> list[int]:
        """Return the shards that are absent or damaged (the latter are computed again)."""
        return [shard for shard in range(self.shards) if not self._whole(shard)]

    def _whole(self, shard: int) -> bool:
        path = self.path(shard)
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                whole = file.get_slice("cls.1").get_shape()[0] == len(self.rows(shard))
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged (%s): computing it again", path, error)
            return False
        return whole


def check_step(count: int) -> int:
    """Return s such that every s-th image makes at most `CHECKED`."""
    return max(1, -(-count // CHECKED))


def open_bank(
    weights: Weights, images: ImageList, spec: BankSpec, *, root: Path | None = None
) -> FeatureBank:
    """Return the bank of this key, whether computed or not; its folder is named by the key."""
    key = spec.key(weights, images)
    folder = (root or cache_root()) / value_digest(key)[:24]
    return FeatureBank(folder=folder, images=images, spec=spec)
