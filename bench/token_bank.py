"""A patch bank of given tokens, on disk as tasks read it, without pictures or a backbone."""

from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from mimbench.data.lists import FolderOpener, ImageList
from mimbench.data.preprocess import Squash
from mimbench.features.patches import PatchBank, PatchSpec

GRID, PATCH = (14, 14), 16


def write_bank(folder: Path, tokens: Tensor) -> PatchBank:
    """Write tokens (images, m, d) in half precision; the class token of an image is its first patch."""
    names = tuple(f"{folder.name}/{i}" for i in range(len(tokens)))
    images = ImageList(
        names=names,
        labels=np.zeros(len(names), dtype=np.int64),
        classes=("picture",),
        stamps=names,
        where=str(folder),
        opener=FolderOpener(folder, names),
    )
    spec = PatchSpec(preprocess=Squash(size=GRID[0] * PATCH), grid=GRID)
    bank = PatchBank(folder=folder, images=images, spec=spec, width=tokens.shape[2], depth=1)
    folder.mkdir(parents=True)
    for shard in range(bank.shards):
        rows = bank.rows(shard)
        part = tokens[rows.start : rows.stop].half().contiguous()
        save_file({"patches.1": part, "cls.1": part[:, 0].clone()}, bank.path(shard))
    return bank
