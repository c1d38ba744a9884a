"""What the DINOv3 layouts share: gated layers to pack, a key bias that is masked, fixed periods."""

import torch
from torch import Tensor

from mimbench.checkpoints.reading.architecture import PARTS, Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    Options,
    Tensors,
    fuse_qkv,
    join_biases,
    pack_gates,
    per_block,
)
from mimbench.system.errors import UserError
from mimbench.vit import sizes
from mimbench.vit.positions import ROTATION_BASE, rotation_periods
from mimbench.vit.weights import VitSpec

GRID = (14, 14)
"""No table shows a grid; the family is pre-trained and evaluated at 224 with patch 16."""

HEADS = sizes.HEADS | {1280: 20, 4096: 32}
FAMILY = Family(
    heads=HEADS, norm_eps=1e-5, position="rotary", grid=GRID, requires=(*PARTS, "reg_token")
)


def finish(tensors: Tensors, family: Family, options: Options) -> tuple[Tensors, VitSpec, bool]:
    """Return canonical tensors, their specification, and whether the heads are the user's word."""
    tensors = fuse_qkv(tensors)
    tensors = per_block(tensors, ["attn.q_bias", "attn.v_bias"], join_biases)
    tensors = per_block(tensors, ["attn.qkv.bias_mask", "attn.qkv.bias"], _mask_bias)
    tensors = pack_gates(tensors)
    periods = tensors.pop("periods", None)
    spec, asked = infer_spec(tensors, family, options.num_heads)
    if periods is not None:
        check_periods(periods, spec.embed_dim // spec.num_heads)
    return tensors, spec, asked


def check_periods(periods: Tensor, width: int) -> None:
    """Refuse periods that are not the published ones (stored in bfloat16, so only nearly equal)."""
    if periods.is_meta:
        return
    fixed = rotation_periods(width)
    if (
        periods.is_complex()
        or periods.shape != fixed.shape
        or not torch.allclose(periods.float(), fixed, rtol=1e-2)
    ):
        raise UserError(
            f"rope_embed.periods are not those of base {ROTATION_BASE:g} for heads of width {width}: "
            "wrong number of heads, or another rotary embedding"
        )


def _mask_bias(mask: Tensor, bias: Tensor | None) -> Tensors:
    if bias is None or mask.shape != bias.shape or bias.shape[0] % 3:
        return {"attn.qkv.bias_mask": mask}
    third = bias.shape[0] // 3
    fixed = torch.ones(bias.shape[0]).index_fill_(0, torch.arange(third, 2 * third), 0.0)
    if mask.is_complex() or (not mask.is_meta and not torch.equal(mask.float(), fixed)):
        raise UserError("an attn.qkv.bias_mask does not mask the key bias alone")
    return {"attn.qkv.bias": torch.where(fixed.bool().to(bias.device), bias, 0.0)}
