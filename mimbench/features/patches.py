"""Patch tokens computed once: memory-mapped shards that every dense task of a checkpoint reads.

Tokens are stored before the final norm, so that one bank serves readers with and without it. A bank of
half precision also keeps the exact tokens of a few images, by which tasks state what halving does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Pixels
from mimbench.features.bank import cache_root, logger
from mimbench.features.extract import fill
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest
from mimbench.system.runtime import Precision, Ranks
from mimbench.system.seeds import sequence_generator
from mimbench.task import Machine
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.weights import VitWeights

VERSION = 1
"""Raise it with every change that moves a stored token."""
SHARD_BYTES = 64 * 2**20
CHECKED = 64
"""Images of which a half-precision bank also keeps the exact tokens."""
Kept = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """Which tokens are kept of each image, and how."""

    preprocess: Pixels
    grid: tuple[int, int]
    """Patches (rows, columns) of a preprocessed image."""
    blocks: tuple[int, ...] = (1,)
    """Counted from the end: 1 is the last block."""
    storage: Literal["fp32", "fp16", "bf16"] = "fp16"
    precision: Precision = "fp32"
    """Of the forward pass."""
    kept: Kept | None = None
    """(images, m) patches of each image that are stored; every patch by default."""

    @property
    def per_image(self) -> int:
        """Patches stored of each image."""
        return self.grid[0] * self.grid[1] if self.kept is None else self.kept.shape[1]

    def key(self, weights: VitWeights, images: ImageList) -> dict[str, Any]:
        """Return everything that may move a stored number: banks differ if any of it does."""
        return {
            "version": VERSION,
            "weights": weights.digest,
            "which": weights.which,
            "spec": weights.spec.to_json(),
            "preprocess": self.preprocess.key(),
            "grid": list(self.grid),
            "blocks": list(self.blocks),
            "storage": self.storage,
            "precision": self.precision,
            "kept": None if self.kept is None else value_digest(self.kept.tolist()),
            "images": images.digest,
            "count": len(images),
            "shard": SHARD_BYTES,
        }


@dataclass(frozen=True, kw_only=True)
class PatchBank:
    """The patch tokens of one image list, on disk."""

    folder: Path
    images: ImageList
    spec: PatchSpec
    width: int
    depth: int

    @property
    def shard_images(self) -> int:
        """Images of one shard: about 64 MiB, whatever the model."""
        size = 4 if self.spec.storage == "fp32" else 2
        image = self.spec.per_image * self.width * len(self.spec.blocks) * size
        return max(1, SHARD_BYTES // image)

    @property
    def shards(self) -> int:
        """Number of shard files of the whole bank."""
        return -(-len(self.images) // self.shard_images)

    @property
    def exact_step(self) -> int:
        """Of every so many images a half-precision bank also keeps exact tokens."""
        return max(1, -(-len(self.images) // CHECKED))

    @property
    def patches(self) -> int:
        """Stored patches of the whole bank."""
        return len(self.images) * self.spec.per_image

    def path(self, shard: int) -> Path:
        """Return a shard's file."""
        return self.folder / f"{shard:05d}.safetensors"

    def rows(self, shard: int) -> range:
        """Return the image indices of a shard."""
        start = shard * self.shard_images
        return range(start, min(start + self.shard_images, len(self.images)))

    def missing(self) -> list[int]:
        """Return the shards that are absent or damaged (the latter are computed again)."""
        return [shard for shard in range(self.shards) if not self._whole(shard)]

    def _whole(self, shard: int) -> bool:
        path = self.path(shard)
        if not path.exists():
            return False
        want = [len(self.rows(shard)), self.spec.per_image, self.width]
        try:
            with safe_open(path, "pt") as file:
                return all(
                    file.get_slice(f"patches.{block}").get_shape() == want
                    for block in self.spec.blocks
                )
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged (%s): computing it again", path, error)
            return False

    def compute(self, backbone: Backbone, images: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the tokens of the bank's blocks before the final norm."""
        wanted = sorted(self.depth - block for block in self.spec.blocks)
        out: dict[str, Tensor] = {}
        for at, features in zip(wanted, backbone.blocks(images, wanted, norm=False), strict=True):
            grid = tuple(features.patches.shape[1:3])
            if grid != self.spec.grid:
                raise UserError(f"the bank is for patches {self.spec.grid}, the model gives {grid}")
            patches = features.patches.flatten(1, 2)
            if self.spec.kept is not None:
                at_rows = torch.from_numpy(self.spec.kept[list(rows)]).to(patches.device)
                patches = patches.gather(1, at_rows[..., None].expand(-1, -1, patches.shape[2]))
            out[f"patches.{self.depth - at}"] = patches
            out[f"cls.{self.depth - at}"] = features.cls
        return out

    def shard(
        self, shard: int, block: int = 1, *, part: Literal["patches", "cls"] = "patches"
    ) -> Tensor:
        """Return a shard's tokens as stored, read from disk where they are touched.

        Args:
            shard: Which.
            block: Counted from the end.
            part: `patches` (images, m, d) or `cls` (images, d).
        """
        with safe_open(self.path(shard), "pt") as file:
            return file.get_tensor(f"{part}.{block}")

    def pieces(self, size: int, block: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (first patch, tokens as stored (at most `size`, d)) over the whole bank, in order."""
        done = 0
        for shard in range(self.shards):
            flat = self.shard(shard, block).flatten(0, 1)
            for start in range(0, len(flat), size):
                yield done + start, flat[start : start + size]
            done += len(flat)

    def image_rows(
        self, indices: Sequence[int], block: int = 1, *, part: Literal["patches", "cls"] = "patches"
    ) -> Tensor:
        """Return the tokens of some images (n, m, d), or their class tokens (n, d), as stored."""
        found: dict[int, Tensor] = {}
        by_shard: dict[int, list[int]] = {}
        for index in indices:
            by_shard.setdefault(index // self.shard_images, []).append(index)
        for shard, mine in by_shard.items():
            tokens, first = self.shard(shard, block, part=part), self.rows(shard).start
            found |= {index: tokens[index - first] for index in mine}
        return torch.stack([found[index] for index in indices])

    def exact(self, block: int = 1) -> tuple[list[int], Tensor]:
        """Return evenly spread images and their float32 tokens (n, m, d), also kept in half banks."""
        at = [i for i in range(len(self.images)) if i % self.exact_step == 0]
        if self.spec.storage == "fp32":
            return at, self.image_rows(at, block)
        parts = []
        for shard in range(self.shards):
            if any(i % self.exact_step == 0 for i in self.rows(shard)):
                with safe_open(self.path(shard), "pt") as file:
                    parts.append(file.get_tensor(f"exact.patches.{block}"))
        return at, torch.cat(parts)


def patch_grid(weights: VitWeights, size: int) -> tuple[int, int]:
    """Return the patches (rows, columns) of a square image."""
    patch = weights.spec.patch_size
    if size % patch:
        near = max(1, round(size / patch)) * patch
        raise UserError(
            f"image_size {size} does not divide into this checkpoint's patches of {patch}; "
            f"choose a multiple, for example {near}"
        )
    return size // patch, size // patch


def open_patches(
    weights: VitWeights, images: ImageList, spec: PatchSpec, *, root: Path | None = None
) -> PatchBank:
    """Return the bank of this key, whether computed or not; its folder is named by the key."""
    depth = weights.spec.depth
    if wrong := [block for block in spec.blocks if not 1 <= block <= depth]:
        raise UserError(f"block {wrong[0]} from the end of a model with {depth} blocks")
    folder = (root or cache_root().with_name("patches")) / value_digest(spec.key(weights, images))[
        :24
    ]
    return PatchBank(
        folder=folder, images=images, spec=spec, width=weights.spec.embed_dim, depth=depth
    )


def extract_patches(
    weights: VitWeights,
    images: ImageList,
    spec: PatchSpec,
    machine: Machine,
    *,
    ranks: Ranks | None = None,
    root: Path | None = None,
) -> PatchBank:
    """Return the complete bank, computing only the shards that are not there yet."""
    bank = open_patches(weights, images, spec, root=root)
    fill(bank, spec.key(weights, images), weights, machine, ranks or Ranks())
    return bank


class FinalNorm:
    """The backbone's final norm on stored tokens; nothing where the model has none for tokens."""

    def __init__(self, weights: VitWeights, device: torch.device) -> None:
        self.device = device
        self.norm = cast(torch.nn.Module, build_backbone(weights).vit.norm).to(device)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Return normed float32 tokens (..., d) on the device."""
        return self.norm(tokens.to(self.device).float())


def random_patches(images: int, grid: tuple[int, int], count: int, *, seed: int) -> Kept | None:
    """Return `count` random patches of each image, ascending; None where that is all of them."""
    total = math.prod(grid)
    if count >= total:
        return None
    rng = sequence_generator(seed, 5437, count)
    order = rng.random((images, total)).argsort(axis=1)[:, :count]
    return np.sort(order, axis=1).astype(np.int64)
