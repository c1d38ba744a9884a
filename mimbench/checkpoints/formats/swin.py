"""Swin transformers: SimMIM's pre-training files, the authors' classifiers, timm's names."""

import math
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
from mimbench.checkpoints.reading.plain import EMA
from mimbench.checkpoints.reading.staged import PREFIXES, depths_of, under
from mimbench.networks.levels import LevelSpec
from mimbench.system.errors import UserError

NAME = "swin"

TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"
EXTRAS = [
    (r".*(relative_position_index|attn_mask|relative_coords_table)", "position index (computed)"),
    (r"mask_token", "mask token"),
    (r"head\..*", "classifier head"),
]
SIZES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "T",
    (96, (2, 2, 18, 2)): "S",
    (128, (2, 2, 18, 2)): "B",
    (192, (2, 2, 18, 2)): "L",
}
STRIDE = 32
"""Pixels of one place of the last stage."""


def claims(raw: Raw) -> bool:
    """Return whether stages of blocks have relative position tables."""
    return any(f"{prefix}{TABLE}" in raw.names for prefix in PREFIXES)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the network; the authors keep a downsampling at its stage's end, timm at the next's start."""
    offers = {"ema": EMA, "teacher": ("teacher",), "student": ("student", *PLAIN)}
    which, state, networks = choose(raw, offers, options.which)
    inner, beside = under(state, TABLE)
    names: list[tuple[str, str]] = []
    if any(name.startswith("layers.0.downsample.") for name in inner):
        names = [
            (rf"layers\.{s}\.downsample\.(.*)", rf"layers.{s + 1}.downsample.\1") for s in range(8)
        ]
    tensors, groups = rename(inner, names, EXTRAS)
    return Converted(
        spec=_spec(tensors),
        tensors=tensors,
        extras=beside | groups | container_extras(raw, [*EMA, *PLAIN, "student", "teacher"]),
        which=which,
        networks=networks,
    )


def _spec(tensors: Tensors) -> LevelSpec:
    depths = depths_of(list(tensors), r"layers\.(\d+)\.blocks\.(\d+)\.")
    tables = [f"layers.{s}.blocks.0.attn.relative_position_bias_table" for s in range(len(depths))]
    kernel = tensors.get("patch_embed.proj.weight")
    if kernel is None or any(name not in tensors for name in tables):
        raise UserError("missing patch_embed.proj.weight or a stage's relative position table")
    width, window = int(kernel.shape[0]), _window(tensors[tables[0]].shape[0])
    size = window * STRIDE
    options: dict[str, Any] = {
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": [int(tensors[name].shape[1]) for name in tables],
        "window_size": window,
    }
    label = SIZES.get((width, depths), f"{width}x{sum(depths)}")
    return LevelSpec(
        architecture="swin_tiny_patch4_window7_224",
        options=options,
        image_size=(size, size),
        name=f"Swin-{label}",
    )


def _window(rows: int) -> int:
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise UserError(f"a table of {rows} rows is none of a square window: not (2w - 1)^2")
    return (side + 1) // 2
