"""What a run takes at least of memory and disk, by arithmetic: estimators that tasks declare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mimbench.system.config import to_mapping

if TYPE_CHECKING:  # the runner reads footprints without torch
    from mimbench.model import Spec

MB = 2**20
PROCESS_MB = 1000
"""What a process holds once torch, timm and a framework are imported."""
TRAINED_BYTES = 16
"""For each parameter: itself, its gradient and Adam's two moments, in fp32."""
STATE_BYTES = 2 * 12
"""For each parameter: a saved state without gradients, twice while the newer replaces the older."""
KEPT_BYTES = {"fp32": 68, "bf16": 34, "fp16": 34}
"""Of activations for each token, block and channel (Korthikanti et al. 2022, without the attention
matrix, which a fused kernel does not keep)."""
VECTORS = 2
"""Class token and mean of the patches, of each of the last `BLOCKS` blocks."""
BLOCKS = 4
STORED_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one run takes at least, in MB."""

    disk: float = 0.0
    """Under the output folder."""
    cache: float = 0.0
    """Features, in the cache, which runs of a checkpoint share."""
    memory: float = PROCESS_MB


def trained(spec: Spec, config: Any, images: int) -> Footprint:
    """Return what training the whole backbone takes: the default, as it is the most."""
    del images
    plain = to_mapping(config)
    recompute = plain.get("machine", {}).get("recompute")
    return Footprint(
        disk=_parameters(spec) * STATE_BYTES / MB,
        memory=PROCESS_MB
        + _parameters(spec) * TRAINED_BYTES / MB
        + _block_mb(spec, plain) * (2 if recompute else _blocks(spec)),
    )


def saved_parameters(spec: Spec) -> float:
    """Return the MB of saved states that hold a backbone without moments, while a newer replaces an older."""
    return _parameters(spec) * 2 * 4 / MB


def frozen(spec: Spec, config: Any, images: int) -> Footprint:
    """Return what a frozen backbone takes: its parameters and the activations of one block."""
    del images
    return Footprint(
        memory=PROCESS_MB + _parameters(spec) * 4 / MB + _block_mb(spec, to_mapping(config))
    )


def stored_features(spec: Spec, config: Any, images: int) -> Footprint:
    """Return what `frozen` does, and the features of all images in the cache."""
    found = frozen(spec, config, images)
    size = STORED_BYTES.get(str(to_mapping(config).get("storage")), 4)
    blocks = min(BLOCKS, _blocks(spec)) if len(spec.levels) == 1 else 1
    bank = images * VECTORS * blocks * spec.embed_dim
    return Footprint(cache=bank * size / MB, memory=found.memory)


def stored_patches(spec: Spec, config: Any, images: int) -> Footprint:
    """Return what `frozen` does, and patch tokens of the images that are scored or trained on."""
    found, plain = frozen(spec, config, images), to_mapping(config)
    # of ImageNet 4 in 100 images are val; without a crop every image's tokens are kept
    share = 1.0 if plain.get("crop") is None else min(1.0, float(plain.get("holdout", 0)) + 0.04)
    size = STORED_BYTES.get(str(plain.get("storage")), 4)
    # only a plain ViT has patches of one width
    width = int(getattr(spec, "embed_dim", 0))
    bank = share * images * tokens(spec, plain) * width
    return Footprint(cache=bank * size / MB, memory=found.memory)


def tokens(spec: Spec, config: Mapping[str, Any]) -> int:
    """Return how many patches the recipe's images have, or places on the finest map."""
    return _places(spec, config)[0]


def _places(spec: Spec, config: Mapping[str, Any]) -> list[int]:
    """Return the places of every map."""
    size = config.get("crop") if isinstance(config.get("crop"), Sequence) else None
    size = size or config.get("image_size") or spec.image_size
    height, width = size if isinstance(size, Sequence) else (size, size)
    strides = [level.stride for level in spec.levels]
    return [-(-int(height) // s) * -(-int(width) // s) for s in strides]


def _blocks(spec: Spec) -> int:
    """Return the blocks between embeddings and head."""
    return max(1, spec.layers - 2)


def _parameters(spec: Spec) -> int:
    return sum(math.prod(shape) for shape in spec.shapes().values())


def _block_mb(spec: Spec, config: Mapping[str, Any]) -> float:
    """Return the activations of one block for the images that are in memory at once."""
    fits = int(config.get("machine", {}).get("max_batch", 1))
    at_once = min(int(config.get("batch") or fits), fits)
    kept = KEPT_BYTES.get(str(config.get("precision", "fp32")), 68)
    maps = [n * v.channels for n, v in zip(_places(spec, config), spec.levels, strict=True)]
    return sum(maps) / max(1, len(maps)) * at_once * kept / MB
