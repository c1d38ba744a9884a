"""EVA-02 files: an absolute table and rotary positions together, gated MLPs with a norm inside."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from mimbench.checkpoints.reading.architecture import CLIP_MEAN, CLIP_STD, PARTS, Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    fuse_qkv,
    join_biases,
    pack_gates,
    per_block,
    rename,
)

NAME = "eva02"

B = r"blocks\.(\d+)\."
NAMES = [
    (B + r"attn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (B + r"mlp\.w1\.(.*)", r"blocks.\1.mlp.gate.\2"),
    (B + r"mlp\.w2\.(.*)", r"blocks.\1.mlp.up.\2"),
    (B + r"mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (B + r"mlp\.ffn_ln\.(.*)", r"blocks.\1.mlp.norm.\2"),
]
EXTRAS = [
    (r"(blocks\.\d+\.attn\.)?rope\.freqs_.*", "rotation (computed)"),
    (r"mask_token", "mask token"),
    (r"lm_head\..*", "token predictor"),
    (r"head\..*", "classifier head"),
]
TRAINED = 16
"""Side of the grid that every published EVA-02 rotates on (224 / 14), whatever its table's side."""
FAMILY = Family(
    norm_eps=1e-6,
    position="absolute+rotary",
    rotation="stretched",
    position_rule="bicubic-antialias",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    requires=PARTS,
)


def claims(raw: Raw) -> bool:
    """Return whether three-matrix MLPs stand beside a position table, without DINOv3's tokens."""
    gated = raw.has(B + r"mlp\.w2\.weight") and raw.has(B + r"attn\.(q_proj\.weight|q_bias)")
    return gated and "pos_embed" in raw.names and not raw.has(r".*storage_tokens")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; the key bias that the family does not have is zero."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors = fuse_qkv(tensors)
    tensors = per_block(tensors, ["attn.q_bias", "attn.v_bias"], join_biases)
    tensors = pack_gates(tensors)
    spec, asked = infer_spec(tensors, FAMILY, options.num_heads)
    side, note = _trained(state, spec.grid)
    return Converted(
        spec=replace(spec, rotation_grid=side),
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=(note,),
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def _trained(state: dict[str, Any], grid: tuple[int, int]) -> tuple[int, str]:
    """Return the side of the grid that rotation was trained at, and where that was learnt."""
    table = next((t for n, t in state.items() if n.endswith("rope.freqs_cos")), None)
    if isinstance(table, Tensor) and table.dim() == 2 and not table.is_meta:
        side = math.isqrt(table.shape[0])
        # the first frequency is 1: the second column's angle is the step itself
        step = math.acos(min(1.0, max(-1.0, float(table[1, table.shape[1] // 2].float()))))
        return round(step * side), "the rotation's grid was read from the stored rope.freqs_cos"
    side = min(TRAINED, grid[0])
    return side, f"no tensor shows the grid of the rotation: {side}x{side} assumed"
