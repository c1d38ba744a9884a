"""Plain ViT names are shared by several families: what else tells them apart."""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    Table,
    choose,
    container_extras,
    rename,
)
from mimbench.vit.positions import sincos_table

EMA = ("state_dict_ema", "model_ema")

FOREIGN = re.compile(
    r"decoder.*|scorer_pred\..*|.*\.q_bias|.*relative_position_bias.*|rel_pos_bias\..*"
    r"|storage_tokens|rope.*|.*\.bias_mask|.*\.q_proj\..*|blocks\.\d+\.proj\..*|(base|momentum)_encoder\..*|net\..*|backbone\..*"
    r"|patch_embed\.(?!proj\.|norm\.).*|patch_embed\.proj\.\d.*|.*\.rel_pos_[hw]|.*\.[qk]_norm\..*"
)
"""Names that make a file more than a plain ViT."""

ADDED = re.compile(
    r"(head|head_dist|fc_norm|norm_pre|attn_pool)\..*|reg_token|dist_token|.*\.ls1\.gamma|.*\.gamma_1"
)
"""Names that published MAE and DINO backbones do not have."""


def plain_kind(raw: Raw) -> Literal["mae", "dino", "dinov2", "timm"] | None:
    """Return which family a file with plain names at its root belongs to."""
    containers = [c for c in (*PLAIN, *EMA) if c in raw.networks]
    state = next((s for c in containers if "blocks.0.norm1.weight" in (s := raw.networks[c])), {})
    if "patch_embed.proj.weight" not in state or any(FOREIGN.fullmatch(n) for n in state):
        return None
    if "pos_embed" not in state and {"reg_token", "blocks.0.gamma_1"} <= state.keys():
        return None  # timm's DINOv3
    if {"student", "teacher", "target_encoder"} & raw.networks.keys():
        return None
    if "blocks.0.ls1.gamma" in state and {"mask_token", "register_tokens"} & state.keys():
        return "dinov2"
    if (
        "architecture" in raw.config
        or "cls_token" not in state
        or any(ADDED.fullmatch(name) for name in state)
    ):
        return "timm"
    # Pixio is MAE's with several class tokens, and a table of its own making
    several = getattr(state["cls_token"], "ndim", 0) == 3 and state["cls_token"].shape[1] > 1
    return "mae" if several or is_fixed_table(state.get("pos_embed")) else "dino"


LARGEST_TABLE = 1 << 24
"""Values of a position table: 4,096 rows of 4,096."""


def is_fixed_table(table: object) -> bool:
    """Return whether a table with a class row is MAE's fixed sine-cosine one."""
    if not isinstance(table, Tensor) or table.dim() != 3 or table.is_meta:
        return False
    if not table.is_floating_point() or not 0 < table.numel() < LARGEST_TABLE:
        return False
    side = round((table.shape[1] - 1) ** 0.5)
    if side < 1 or side * side + 1 != table.shape[1] or table.shape[2] % 4:
        return False
    fixed = sincos_table(table.shape[2], (side, side), class_row=True)
    return bool(torch.allclose(table.float(), fixed, atol=2e-3))


def convert_plain(
    raw: Raw,
    options: Options,
    *,
    offers: Mapping[str, tuple[str, ...]],
    extras: Table,
    names: Table = (),
    family: Family | None = None,
) -> Converted:
    """Return the encoder of a file whose names are canonical or differ by a table alone."""
    which, state, networks = choose(raw, offers, options.which)
    tensors, groups = rename(state, names, extras)
    spec, asked = infer_spec(tensors, family or Family(), options.num_heads)
    used = [container for containers in offers.values() for container in containers]
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, used),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
