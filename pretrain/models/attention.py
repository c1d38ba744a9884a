"""Where a ViT's class token looks: the last block's attention probabilities, and nothing more.

All other blocks keep the fused kernel, which never forms probabilities; here one query meets all
keys, so the cost is that of one row.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.vit.backbone import Backbone
from mimbench.vit.network import Vit
from mimbench.vit.positions import Rotation
from mimbench.vit.relative import attention_bias
from mimbench.vit.rotary import rotate, rotation_angles


def class_attention(
    qkv: nn.Linear,
    tokens: Tensor,
    heads: int,
    *,
    angles: Tensor | None = None,
    rotation: Rotation = "centred",
    bias: Tensor | None = None,
) -> Tensor:
    """Return the probabilities (b, heads, n), float32, with which the first token attends to all.

    Args:
        qkv: The block's joint projection to queries, keys and values.
        tokens: The tokens (b, n, d) that enter it, normalised.
        heads: Attention heads.
        angles: Rotations of the patches' keys, where positions rotate.
        rotation: The family of the angles.
        bias: (1, heads, n, n) added before the softmax, where positions are relative.
    """
    b, n, _ = tokens.shape
    rows, shift = len(qkv.weight) // 3, cast("Tensor | None", qkv.bias)
    query = F.linear(tokens[:, :1], qkv.weight[:rows], None if shift is None else shift[:rows])
    between = slice(rows, 2 * rows)
    keys = F.linear(tokens, qkv.weight[between], None if shift is None else shift[between])
    q = query.float().reshape(b, 1, heads, -1).transpose(1, 2)
    k = keys.float().reshape(b, n, heads, -1).transpose(1, 2)
    if angles is not None:
        # the class token itself has no place and does not turn
        k = rotate(k, angles.to(k.device), rotation)
    with torch.autocast(tokens.device.type, enabled=False):
        # ranks decide, and half precision would make ties
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, :, :1].float()
        return scores.softmax(dim=-1).squeeze(2)


def vit_attention(vit: Vit, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the same row over patches (b, heads, h * w) for the tokens that enter a ViT's last block."""
    spec = vit.spec
    last = f"blocks.{spec.depth - 1}"
    norm, qkv = vit.get_submodule(f"{last}.norm1"), vit.get_submodule(f"{last}.attn.qkv")
    assert isinstance(qkv, nn.Linear)
    angles, bias = None, None
    if spec.is_rotary:
        angles = rotation_angles(
            grid, spec.head_dim, spec.rotation, spec.rotation_grid, registers=spec.register_tokens
        )
    if spec.position == "relative":
        table = vit.get_parameter(f"{last}.attn.relative_position_bias_table")
        bias = attention_bias(table, grid=spec.grid, to=grid)
    turned = {"angles": angles, "rotation": spec.rotation}
    row = class_attention(qkv, norm(tokens), spec.num_heads, bias=bias, **turned)
    return row[:, :, spec.prefix_tokens :]


@torch.no_grad()
def backbone_attention(
    backbone: Backbone, images: Tensor, *, grid: tuple[int, int] | None = None
) -> Tensor:
    """Return that row of any frozen backbone for images (b, 3, H, W) in [0, 1].

    Args:
        backbone: The network.
        images: What it looks at.
        grid: Rows and columns of patches to see; images are resized to as many of the backbone's.
    """
    spec, vit = backbone.spec, backbone.vit
    if not spec.class_token:
        raise UserError("these weights have no class token, so nothing attends for the image")
    if grid is None:
        grid = (images.shape[2] // spec.patch_size, images.shape[3] // spec.patch_size)
    size = [side * spec.patch_size for side in grid]
    if list(images.shape[2:]) != size:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    x = vit.embed(backbone.normalise(images))
    for index in range(spec.depth - 1):
        x = vit.run_block(index, x, grid)
    return vit_attention(vit, x, grid)
