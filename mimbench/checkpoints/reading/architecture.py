"""Architecture from tensors: what shapes say is inferred, what they cannot say is the family's word."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.vit import sizes
from mimbench.vit.positions import PositionRule, Rotation
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD, Activation, Triple, VitSpec

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

HEADS = sizes.HEADS | {1536: 24, 4096: 32}
"""Width -> heads of the published sizes: head width 64, but 80 for H."""


UNSAID = (
    "a CLIP whose file does not say whether its activation is GELU or QuickGELU, and either gives "
    "features. Say it once and evaluate what comes out: `python -m mimbench export FILE --to native "
    "-o OURS.safetensors --set activation=quick_gelu` for OpenAI's weights and configurations with "
    "quickgelu in their name, `--set activation=gelu` for OpenCLIP's others; or give the folder with "
    "its {folder}"
)


def activation_of(said: str) -> Activation:
    """Return the activation that the user says."""
    if said == "gelu" or said == "quick_gelu" or said == "gelu_tanh":
        return said
    raise UserError(f"activation is {said!r}, expected gelu, quick_gelu or gelu_tanh")


PARTS = ("cls_token", "patch_embed.proj.bias", "norm.weight|fc_norm.weight")


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family's tensors do not show."""

    heads: Mapping[int, int] = field(default_factory=lambda: HEADS)
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    position_rule: PositionRule = "bicubic"
    pool: Literal["cls", "avg"] = "cls"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    position: Literal["absolute", "relative", "rotary", "absolute+rotary"] = "absolute"
    rotation: Rotation = "centred"
    rotation_grid: int = 0
    norm: Literal["layer", "rms"] = "layer"
    bare_rows: bool = False
    """Class tokens may lack a position of their own (timm's `no_embed_class`)."""
    requires: tuple[str, ...] = PARTS
    """Parts that shapes would let be absent; alternatives are separated by '|'."""
    grid: tuple[int, int] | None = None
    """Said by the family or its configuration where no table shows it."""
    patch: int | None = None
    """Said by a configuration; the kernel must agree."""


def infer_spec(
    tensors: Mapping[str, Tensor], family: Family, num_heads: int | None = None
) -> tuple[VitSpec, bool]:
    """Return the specification of canonical tensors, and whether the heads are the user's word."""
    kernel = _need(tensors, "patch_embed.proj.weight", 4)
    D, channels, patch, width = kernel.shape
    if channels != 3 or patch != width:
        raise UserError(
            f"the patch kernel is {tuple(kernel.shape)}, expected (width, 3, p, p): "
            "only square patches of three-channel images are supported"
        )
    if family.patch not in (None, patch):
        raise UserError(f"config.json says patches of {family.patch}, the kernel has {patch}")
    depth = 1 + max((int(n.split(".")[1]) for n in tensors if _BLOCK.match(n)), default=-1)
    if not depth:
        raise UserError("no tensor is named blocks.<i>.*: there are no transformer blocks")
    for part in family.requires:
        if not any(name in tensors for name in part.split("|")):
            raise UserError(f"missing {part.replace('|', ' or ')}")
    hidden = _need(tensors, "blocks.0.mlp.fc2.weight", 2).shape[1]
    heads, asked = _heads(D, family, num_heads)
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    token = "cls_token" in tensors
    count = _need(tensors, "cls_token", 3).shape[1] if token else 0
    grid, with_prefix = _grid(tensors, family, count, registers)
    spec = VitSpec(
        embed_dim=D,
        depth=depth,
        num_heads=heads,
        mlp_dim=hidden,
        patch_size=patch,
        grid=grid,
        class_token=token,
        register_tokens=registers,
        position=family.position,
        position_rows_for_prefix=with_prefix,
        position_rule=family.position_rule,
        layer_scale="blocks.0.ls1.gamma" in tensors,
        qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        patch_bias="patch_embed.proj.bias" in tensors,
        pre_norm="norm_pre.weight" in tensors,
        final_norm=_final_norm(tensors),
        norm_eps=family.norm_eps,
        activation=family.activation,
        mlp=_mlp(tensors, hidden),
        pool="avg" if "fc_norm.weight" in tensors else family.pool,
        mean=family.mean,
        std=family.std,
        class_tokens=count or 1,
        rotation=family.rotation,
        rotation_grid=family.rotation_grid,
        norm=family.norm,
        mlp_norm="blocks.0.mlp.norm.weight" in tensors,
        patch_norm="patch_embed.norm.weight" in tensors,
        proj_bias="blocks.0.attn.proj.bias" in tensors,
    )
    return spec, asked


_BLOCK = re.compile(r"blocks\.\d{1,3}\.")


def _need(tensors: Mapping[str, Any], name: str, dims: int) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise UserError(f"missing {name}")
    if tensor.dim() != dims or 0 in tensor.shape:
        raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected {dims} dimensions")
    return tensor


def _final_norm(tensors: Mapping[str, Tensor]) -> Literal["norm", "fc_norm", "none"]:
    if "norm.weight" in tensors:
        return "norm"
    return "fc_norm" if "fc_norm.weight" in tensors else "none"


def _mlp(tensors: Mapping[str, Tensor], hidden: int) -> Literal["mlp", "swiglu"]:
    """Return 'swiglu' where the first layer makes gate and value at once."""
    return (
        "swiglu" if _need(tensors, "blocks.0.mlp.fc1.weight", 2).shape[0] == 2 * hidden else "mlp"
    )


def _heads(dim: int, family: Family, asked: int | None) -> tuple[int, bool]:
    known = family.heads.get(dim)
    heads = asked if asked is not None else known
    if heads is None:
        raise UserError(
            f"the number of attention heads cannot be read from tensors, and {dim} is no published "
            "width; say it with --num-heads N (num_heads=N)"
        )
    if heads < 1 or dim % heads:
        raise UserError(f"{heads} heads do not divide the width {dim}")
    return heads, heads != known


def _grid(
    tensors: Mapping[str, Tensor], family: Family, tokens: int, registers: int
) -> tuple[tuple[int, int], bool]:
    """Return the table's grid, and whether it has rows for the class tokens and registers."""
    if family.position not in ("absolute", "absolute+rotary"):
        if family.grid is None:
            raise ValueError(f"a {family.position} family must say its grid")
        return family.grid, True
    table = _need(tensors, "pos_embed", 3)
    rows = table.shape[1]
    total = tokens + registers
    # tables of register models have no prefix rows in timm; others nearly always have them
    tried = (0, total) if registers else (total, 0) if family.bare_rows else (total,)
    for prefix in tried:
        count, whole = rows - prefix, prefix == total
        if family.grid is not None and math.prod(family.grid) == count:
            return family.grid, whole
        side = math.isqrt(max(count, 0))
        if side and side * side == count:
            return (side, side), whole
    raise UserError(
        f"pos_embed has {rows} rows: not a square grid of patches plus {total} "
        "class and register rows; only a native file or a config.json can say a non-square grid"
    )
