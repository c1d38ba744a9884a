"""Canonical ViT weights under the names of detectron2's ViT: a pure map that needs no detectron2."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitSpec, VitWeights, mismatches

PLACELESS = ("cls_token", "reg_token", "norm.", "fc_norm.")
"""What ViTDet has no place for: it runs on patch tokens alone and has no norm after the last block."""

RESAMPLED = {14: 16}
"""Patch sizes whose kernel may be resampled; the pyramid needs a stride that is a power of two."""


@dataclass(frozen=True, kw_only=True)
class Converted:
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


def convert(weights: VitWeights, *, patch_size: int | None, side: int) -> Converted:
    """Return the weights as detectron2's ViT holds them; every tensor is used or listed.

    Args:
        weights: Canonical weights.
        patch_size: The patch size to run at; None for the checkpoint's own.
        side: Patches per side of the images that the detector sees.
    """
    spec = weights.spec
    if faults := mismatches(spec, weights.tensors):
        raise UserError(f"{weights.name or 'weights'} do not fit their specification: {faults[:5]}")
    target = target_patch(spec, patch_size)
    refuse(spec)
    left = dict(weights.tensors)
    notes: list[str] = []
    out = _patches(left, spec, target, notes)
    out["pos_embed"], table_side, class_row = _positions(left.pop("pos_embed"), spec, side, notes)
    for i in range(spec.depth):
        out |= _block(left, f"blocks.{i}.", layer_scale=spec.layer_scale)
    if spec.layer_scale:
        notes.append("LayerScale folded into attn.proj and mlp.fc2")
    if spec.register_tokens:
        notes.append(f"{spec.register_tokens} register tokens dropped: ViTDet attends patches only")
    unplaced = [name for name in left if not name.startswith(PLACELESS)]
    if unplaced:
        raise UserError(
            f"{len(weights.tensors) - len(left)} of {len(weights.tensors)} backbone tensors used: "
            f"no rule maps {unplaced[:5]} to ViTDet"
        )
    return Converted(
        tensors=out,
        patch_size=target,
        table_side=table_side,
        class_row=class_row,
        used=len(weights.tensors) - len(left),
        placeless=tuple(sorted(left)),
        notes=tuple(notes),
    )


def target_patch(spec: VitSpec, wanted: int | None) -> int:
    """Return the patch size to run at, or say why the wanted one is out of reach."""
    own = spec.patch_size
    if wanted is None:
        if own & (own - 1):
            raise UserError(
                f"patch_size is null (the checkpoint's own), but patches of {own} give no pyramid "
                "of strides that double from a power of two; use patch_size: 16"
            )
        return own
    if wanted not in (own, RESAMPLED.get(own)):
        raise UserError(
            f"the recipe runs at patch_size {wanted} and the checkpoint has patches of {own}; "
            f"only a kernel of 14 is resampled (to 16); use patch_size: null to run at {own}"
        )
    return wanted


def refuse(spec: VitSpec) -> None:
    """Raise `UserError` with the reason when ViTDet cannot hold the function of such weights."""
    reasons = []
    if spec.position != "absolute":
        reasons.append(
            f"its {spec.position} positions have no counterpart: ViTDet's are an absolute table "
            "and decomposed tables that start from zero"
        )
    if spec.pre_norm:
        reasons.append(
            "it has a norm before the first block (norm_pre, as CLIP): ViTDet's ViT has none there, "
            "and it cannot be folded into the patch projection, because it follows the positions"
        )
    if spec.mlp != "mlp":
        reasons.append(f"its {spec.mlp} blocks have a gate that ViTDet's MLP lacks")
    if reasons:
        raise UserError("ViTDet cannot run this backbone: " + "; ".join(reasons))


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
    table: Tensor, spec: VitSpec, side: int, notes: list[str]
) -> tuple[Tensor, int, bool]:
    prefix = spec.position_prefix
    if spec.position_rule == "bicubic" and spec.grid[0] == spec.grid[1] and prefix <= 1:
        return table, spec.grid[0], prefix == 1
    # detectron2 resizes by its own rule at every forward; at the target size it leaves the table be
    resized = resize_table(
        table, grid=spec.grid, to=(side, side), prefix=prefix, rule=spec.position_rule
    )
    notes.append(
        f"position table resized once from {spec.grid[0]}x{spec.grid[1]} to {side}x{side} "
        f"by the family's rule ({spec.position_rule})"
    )
    return resized[:, prefix:], side, False


def _block(left: dict[str, Tensor], at: str, *, layer_scale: bool) -> dict[str, Tensor]:
    out = {
        name: left.pop(name)
        for name in [n for n in left if n.startswith(at) and not n.endswith("gamma")]
    }
    if layer_scale:
        for gamma, linear in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            scale = left.pop(f"{at}{gamma}.gamma")
            weight, bias = f"{at}{linear}.weight", f"{at}{linear}.bias"
            out[weight] = out[weight] * scale[:, None]
            out[bias] = out[bias] * scale
    return out
