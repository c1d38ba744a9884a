"""BEiT and BEiT v2 files (timm's too): no position table, a relative position bias instead."""

import math
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mimbench.checkpoints.formats import timm
from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    Tensors,
    choose,
    container_extras,
    joined,
    per_block,
    rename,
)
from mimbench.system.errors import UserError

NAME = "beit"

SHARED = "rel_pos_bias.relative_position_bias_table"
TABLE = "attn.relative_position_bias_table"
NAMES = [(r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma")]
EXTRAS = [
    (r".*relative_position_index", "position index (computed)"),
    (r"mask_token", "mask token"),
    (r"(lm_head|cls_pt_lm_head)\..*", "token predictor"),
    (r"cls_pt_layers\..*", "patch aggregation"),
    (r"head\..*", "classifier head"),
]


def claims(raw: Raw) -> bool:
    """Return whether a query bias stands beside a relative position table."""
    return raw.has(rf"{re.escape(SHARED)}|blocks\.0\.{re.escape(TABLE)}")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder, with the shared table copied into every block."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    said = timm.family(raw)
    family = Family(mean=said.mean, std=said.std)
    converted = convert_state(state, options, family)
    notes = () if raw.config else (timm.normalisation_note(said),)
    return replace(
        converted,
        extras={**converted.extras, **container_extras(raw, PLAIN)},
        notes=(*converted.notes, *notes),
        which=which,
        networks=networks,
    )


def convert_state(state: dict[str, Any], options: Options, family: Family) -> Converted:
    """Return the encoder of a state with BEiT's names."""
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors = per_block(tensors, ["attn.q_bias", "attn.v_bias", "attn.k_bias"], _join_bias)
    notes: tuple[str, ...] = ()
    table = tensors.pop(SHARED, None)
    if table is not None:
        blocks = {name.split(".")[1] for name in tensors if re.match(r"blocks\.\d+\.", name)}
        if any(f"blocks.{i}.{TABLE}" in tensors for i in blocks):
            raise UserError("both a shared and per-block relative position tables are there")
        tensors |= {f"blocks.{i}.{TABLE}": table for i in blocks}
        notes = ("the shared relative position table was copied into every block (exact)",)
    family = replace(family, position="relative", grid=_grid(tensors.get(f"blocks.0.{TABLE}")))
    spec, asked = infer_spec(tensors, family, options.num_heads or _heads(tensors))
    known = options.num_heads is None
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups,
        notes=notes,
        heads_asked=asked and not known,
    )


def _heads(tensors: Tensors) -> int | None:
    """Return the number of heads, which the table's columns do show."""
    table = tensors.get(f"blocks.0.{TABLE}")
    return int(table.shape[1]) if table is not None and table.dim() == 2 else None


def _join_bias(q: Tensor, v: Tensor | None, k: Tensor | None) -> Tensors:
    """Return the joined bias; BEiT has no key bias, which would change nothing."""
    if v is None:
        return {"attn.q_bias": q}
    return {"attn.qkv.bias": joined(q, torch.zeros_like(q) if k is None else k, v)}


def _grid(table: Tensor | None) -> tuple[int, int]:
    if table is None or table.dim() != 2:
        raise UserError(f"missing blocks.0.{TABLE}")
    side = math.isqrt(max(table.shape[0] - 3, 0))
    if side * side != table.shape[0] - 3 or side % 2 == 0:
        raise UserError(
            f"the relative position table has {table.shape[0]} rows: not (2g - 1)^2 + 3 of a square grid"
        )
    return (side + 1) // 2, (side + 1) // 2
