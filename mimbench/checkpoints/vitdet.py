"""Canonical ViT weights as detectron2's ViT holds them: the one map, for detection and for export.

A pure map that needs no detectron2. ViTDet attends patches alone and has no norm after the last block,
so class token, registers and final norm have no place in it; all else keeps its function.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from mimbench.model import require_fit
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few
from mimbench.vit.positions import resize_table
from mimbench.vit.relative import TOKEN_ROWS, resize_bias
from mimbench.vit.weights import VitSpec, VitWeights, fold_layer_scale

PREFIX = "prefix_tokens"
"""What a trunk of ours calls class tokens and registers where it keeps them."""
PLACELESS = ("cls_token", "reg_token", "norm.", "fc_norm.")
"""What ViTDet has no place for."""


@dataclass(frozen=True, kw_only=True)
class VitDetTensors:
    """Tensors for detectron2's ViT, and what its constructor must know about them."""

    tensors: Mapping[str, Tensor]
    patch_size: int
    table_side: int
    """Rows and columns of the stored position table."""
    class_row: bool
    """The stored table still has the class token's row; ViTDet cuts it off on every forward."""
    used: int
    placeless: tuple[str, ...]
    """Canonical tensors without a place in ViTDet, by the rule in `PLACELESS`."""
    notes: tuple[str, ...]

    @property
    def report(self) -> str:
        """Return the line that says what was loaded."""
        text = f"{self.used} of {self.used} backbone tensors used"
        if self.placeless:
            text += f"; ViTDet has no place for {', '.join(self.placeless)}"
        return "; ".join([text, *self.notes])


def is_stock(spec: VitSpec) -> bool:
    """Return whether detectron2's own ViT computes what the specification describes."""
    plain = spec.position == "absolute" and spec.mlp == "mlp" and spec.norm == "layer"
    return plain and spec.proj_bias and not (spec.pre_norm or spec.patch_norm or spec.mlp_norm)


def to_vitdet(
    weights: VitWeights,
    *,
    patch_size: int | None = None,
    side: int | None = None,
    windows: Mapping[int, int] | None = None,
    prefix: bool = False,
) -> VitDetTensors:
    """Return the weights as detectron2's ViT holds them; every tensor is used or listed.

    Args:
        weights: Canonical weights.
        patch_size: The patch size to run at; None for the checkpoint's own.
        side: Patches per side of the images to come; None keeps the position table's own grid.
        windows: Window of each block that has one, for a trunk of ours; None for detectron2's own
            ViT, which cannot hold every function.
        prefix: Keep class token and registers, for a trunk of ours.
    """
    spec = weights.spec
    require_fit(weights)
    refuse(spec, ours=windows is not None)
    left = fold_layer_scale(weights)
    notes = ["LayerScale folded into attn.proj and mlp.fc2"] if spec.layer_scale else []
    target = patch_size or spec.patch_size
    out = _patches(left, spec, target, notes)
    table_side, class_row = side or spec.grid[0], False
    if prefix:
        out[PREFIX] = _prefix(left, spec)
        notes.append(
            f"{spec.prefix_tokens} prefix tokens kept: they wait while windowed blocks run, and attend "
            "in global ones"
        )
    if spec.has_table:
        table = left.pop("pos_embed")
        out["pos_embed"], table_side, class_row = _positions(table, spec, side, notes)
    placed = ("blocks.", "norm_pre.", "patch_embed.norm.")
    out |= {name: left.pop(name) for name in [*left] if name.startswith(placed)}
    if spec.position == "relative":
        _tables(out, spec, windows or {}, table_side, notes)
    if spec.is_rotary:
        notes.append("rotary positions: no decomposed tables beside them, padding is masked")
    if spec.register_tokens and not prefix:
        notes.append(f"{spec.register_tokens} register tokens dropped: ViTDet attends patches only")
    if unplaced := [name for name in left if not name.startswith(PLACELESS)]:
        raise UserError(f"no rule maps {first_few(unplaced)} to ViTDet")
    return VitDetTensors(
        tensors=out,
        patch_size=target,
        table_side=table_side,
        class_row=class_row,
        used=len(weights.tensors) - len(left),
        placeless=tuple(sorted(left)),
        notes=tuple(notes),
    )


def _prefix(left: dict[str, Tensor], spec: VitSpec) -> Tensor:
    """Return class tokens and registers (1, n, d) with their positions added."""
    if spec.position == "relative" or not spec.prefix_tokens:
        reason = (
            "has none" if not spec.prefix_tokens else "gives them relative positions of their own"
        )
        raise UserError(f"prefix: kept needs prefix tokens, and this backbone {reason}")
    tokens = torch.cat([left.pop(n) for n in ("cls_token", "reg_token") if n in left], dim=1)
    rows = spec.position_prefix if spec.has_table else 0
    return tokens + left["pos_embed"][:, :rows] if rows else tokens


def refuse(spec: VitSpec, *, ours: bool) -> None:
    """Raise `UserError` with the reason when a trunk cannot hold the function of such weights.

    Args:
        spec: The checkpoint's architecture.
        ours: The trunk is ours, which holds all that is defined without prefix tokens.
    """
    reasons = []
    if not ours and not is_stock(spec):
        parts = {
            f"{spec.position} positions": spec.position != "absolute",
            "norm before the first block (norm_pre, as CLIP)": spec.pre_norm,
            f"{spec.mlp} blocks": spec.mlp != "mlp",
            "norms or biases of another kind": spec.norm != "layer" or not spec.proj_bias,
            "norm on patches or inside the MLP": spec.patch_norm or spec.mlp_norm,
        }
        reasons.append(
            f"detectron2's own ViT has no {', no '.join(k for k, v in parts.items() if v)}"
        )
    if spec.position == "relative" and spec.grid[0] != spec.grid[1]:
        reasons.append(
            f"its relative positions are of a {spec.grid[0]}x{spec.grid[1]} grid: only tables of "
            "square grids can be brought to another size"
        )
    if spec.is_rotary and spec.head_dim % 4:
        reasons.append(
            f"its heads of width {spec.head_dim} cannot be rotated by rows and columns in pairs"
        )
    if reasons:
        raise UserError("ViTDet cannot run this backbone: " + "; ".join(reasons))


def vitdet_arguments(spec: VitSpec, converted: VitDetTensors) -> dict[str, Any]:
    """Return what detectron2's ViT must be built with, beside what the detector decides."""
    # detectron2 floors width x ratio: half a unit more keeps an uneven ratio from losing one
    whole = spec.mlp_dim % spec.embed_dim == 0
    ratio = spec.mlp_dim // spec.embed_dim if whole else (spec.mlp_dim + 0.5) / spec.embed_dim
    return {
        "patch_size": converted.patch_size,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": ratio,
        "qkv_bias": spec.qkv_bias,
        "pretrain_img_size": converted.table_side * converted.patch_size,
        "pretrain_use_cls_token": converted.class_row,
    }


def _patches(
    left: dict[str, Tensor], spec: VitSpec, target: int, notes: list[str]
) -> dict[str, Tensor]:
    kernel = left.pop("patch_embed.proj.weight")
    bias = left.pop("patch_embed.proj.bias", None)
    if target != spec.patch_size:
        kernel = resample_patch_embed(kernel, [target, target], verbose=False)
        notes.append(f"patch kernel resampled from {spec.patch_size} to {target} (pseudo-inverse)")
    if bias is None:
        bias = torch.zeros(spec.embed_dim)
    return {"patch_embed.proj.weight": kernel, "patch_embed.proj.bias": bias}


def _positions(
    table: Tensor, spec: VitSpec, side: int | None, notes: list[str]
) -> tuple[Tensor, int, bool]:
    """Return the table, its side, and whether it has the class token's row."""
    prefix, (rows, columns) = spec.position_prefix, spec.grid
    if side is None:
        if rows != columns:
            raise UserError(
                f"its position table is for {rows}x{columns} patches, and detectron2's ViT holds a "
                "square one"
            )
        if spec.position_rule != "bicubic":
            notes.append(
                f"at other sizes than its own, detectron2 resizes positions by another rule than the "
                f"family's ({spec.position_rule})"
            )
        return (table, rows, prefix == 1) if prefix <= 1 else (table[:, prefix:], rows, False)
    if spec.position_rule == "bicubic" and rows == columns and prefix <= 1:
        return table, rows, prefix == 1
    # detectron2 resizes by its own rule at every forward; at the target size it leaves the table be
    resized = resize_table(
        table, grid=spec.grid, to=(side, side), prefix=prefix, rule=spec.position_rule
    )
    notes.append(
        f"position table resized once from {rows}x{columns} to {side}x{side} "
        f"by the family's rule ({spec.position_rule})"
    )
    return resized[:, prefix:], side, False


def _tables(
    out: dict[str, Tensor], spec: VitSpec, windows: Mapping[int, int], side: int, notes: list[str]
) -> None:
    """Bring every block's bias table to its window, or to the whole grid; class token's rows go."""
    trained = spec.grid[0]
    for i in range(spec.depth):
        name = f"blocks.{i}.attn.relative_position_bias_table"
        target = windows.get(i, side)
        table = out[name]
        if target > trained:
            table = resize_bias(table, grid=spec.grid, to=(target, target))
        have = max(target, trained)
        cells = table[:-TOKEN_ROWS].unflatten(0, (2 * have - 1, 2 * have - 1))
        cut = have - target
        out[name] = cells[cut : len(cells) - cut, cut : len(cells) - cut].flatten(0, 1)
    notes.append(
        f"relative position tables of {trained}x{trained} patches: cut to smaller windows (exact), "
        "resized geometrically to larger ones and to global blocks; class token's rows dropped"
    )
