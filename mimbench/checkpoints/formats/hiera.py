"""Hiera under its authors' names: classifiers and MAE pre-training files."""

import math
import re
from itertools import pairwise
from typing import Any

from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    Tensors,
    choose,
    container_extras,
    rename,
)
from mimbench.networks.levels import LevelSpec
from mimbench.system.errors import UserError

NAME = "hiera"

CONTAINERS = ("model_state", *PLAIN)
NAMES = [(r"(?:encoder_)?norm\.(.*)", r"head.norm.\1")]
EXTRAS = [
    (r"decoder_.*", "decoder"),
    (r"multi_scale_fusion_heads\..*", "fusion heads"),
    (r"mask_token", "mask token"),
    (r"head\.(projection|fc)\..*", "classifier head"),
]
HEADS = {96: 1, 112: 2, 144: 2, 256: 4}
"""Width -> heads of the first stage; they double with every stage."""
SIZES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (1, 2, 7, 2)): "T",
    (96, (1, 2, 11, 2)): "S",
    (96, (2, 3, 16, 3)): "B",
    (112, (2, 3, 16, 3)): "B+",
    (144, (2, 6, 36, 4)): "L",
    (256, (2, 6, 36, 4)): "H",
}


def claims(raw: Raw) -> bool:
    """Return whether a stem of overlapping patches feeds blocks that widen by a projection."""
    widens = raw.has(r"blocks\.\d+\.proj\.weight") and raw.has(r"blocks\.0\.attn\.qkv\.weight")
    return widens and raw.has("pos_embed") and not raw.has(r"cls_token")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder."""
    which, state, networks = choose(raw, {"student": CONTAINERS}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    spec, asked = _spec(tensors, options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, CONTAINERS),
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def _spec(tensors: Tensors, asked: int | None) -> tuple[LevelSpec, bool]:
    kernel, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if kernel is None or table is None or table.dim() != 3 or kernel.dim() != 4:
        raise UserError("missing patch_embed.proj.weight or pos_embed")
    width, rows = int(kernel.shape[0]), table.shape[1]
    side = math.isqrt(rows)
    if side * side != rows:
        raise UserError(f"pos_embed has {rows} rows: not a square grid")
    blocks = sorted({int(m.group(1)) for n in tensors if (m := re.match(r"blocks\.(\d+)\.", n))})
    starts = [0, *(i for i in blocks if f"blocks.{i}.proj.weight" in tensors), len(blocks)]
    stages = tuple(b - a for a, b in pairwise(starts))
    known = HEADS.get(width)
    heads = asked if asked is not None else known
    if heads is None:
        raise UserError(
            f"the number of attention heads cannot be read from tensors, and {width} is no published "
            "width of Hiera; say the first stage's with --num-heads N (num_heads=N)"
        )
    options: dict[str, Any] = {"embed_dim": width, "num_heads": heads, "stages": list(stages)}
    return LevelSpec(
        architecture="hiera_tiny_224",
        options=options,
        image_size=(4 * side, 4 * side),
        final_norm="head.norm.weight" in tensors,
        name=f"Hiera-{SIZES.get((width, stages), f'{width}x{len(blocks)}')}",
    ), heads != known
