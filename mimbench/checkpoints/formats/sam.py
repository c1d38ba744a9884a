"""Segment Anything's image encoder: a ViT with windows and decomposed positions, as timm builds it."""

from typing import Any

from torch import Tensor

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

NAME = "sam"

P = r"(?:image_encoder\.)?"
NAMES = [
    (P + r"blocks\.(\d+)\.mlp\.lin([12])\.(.*)", r"blocks.\1.mlp.fc\2.\3"),
    (P + r"(.*)", r"\1"),
]
EXTRAS = [
    (r"prompt_encoder\..*", "prompt encoder"),
    (r"mask_decoder\..*", "mask decoder"),
    (r"pixel_(mean|std)", "image statistics"),
]
SIZES = {768: (12, "base", "SAM-B"), 1024: (16, "large", "SAM-L"), 1280: (16, "huge", "SAM-H")}
"""Width -> heads, timm's size, short name."""
WINDOW = 14


def claims(raw: Raw) -> bool:
    """Return whether blocks have decomposed positions and SAM's neck stands behind them."""
    return raw.has(P + r"blocks\.0\.attn\.rel_pos_h") and raw.has(P + r"neck\.0\.weight")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the image encoder; its map is the neck's input, its image vector the mean of the neck's output."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    spec, asked = _spec(tensors, options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def _spec(tensors: Tensors, asked: int | None) -> tuple[LevelSpec, bool]:
    kernel, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    if not isinstance(kernel, Tensor) or not isinstance(table, Tensor) or table.dim() != 4:
        raise UserError("missing patch_embed.proj.weight or a position map pos_embed (1, h, w, d)")
    width, patch = int(kernel.shape[0]), int(kernel.shape[2])
    depth = 1 + max(int(n.split(".")[1]) for n in tensors if n.startswith("blocks."))
    heads, size, name = SIZES.get(width, (0, "base", f"SAM-{width}x{depth}"))
    if not (asked or heads):
        raise UserError(f"{width} is no published width of SAM; say the heads with --num-heads N")
    side = int(table.shape[1]) * patch
    whole = [_is_global(tensors, i, int(table.shape[1])) for i in range(depth)]
    options: dict[str, Any] = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": asked or heads,
        "img_size": side,
        "window_size": _window(tensors, whole),
        "global_attn_indexes": [i for i, is_global in enumerate(whole) if is_global],
    }
    spec = LevelSpec(
        architecture=f"samvit_{size}_patch16", options=options, image_size=(side, side), name=name
    )
    return spec, bool(asked) and asked != heads


def _rows(tensors: Tensors, block: int) -> int:
    return int(tensors[f"blocks.{block}.attn.rel_pos_h"].shape[0])


def _is_global(tensors: Tensors, block: int, side: int) -> bool:
    """Return whether a block's positions span the whole grid."""
    return _rows(tensors, block) == 2 * side - 1


def _window(tensors: Tensors, whole: list[bool]) -> int:
    """Return the side of the windows, which the other blocks' positions span."""
    rows = [_rows(tensors, i) for i, is_global in enumerate(whole) if not is_global]
    return (rows[0] + 1) // 2 if rows else WINDOW
