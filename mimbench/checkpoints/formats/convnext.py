"""ConvNeXt and ConvNeXt V2 under the authors' names or timm's: classifiers, DINOv3's, FCMAE's."""

import math
import re
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
from mimbench.checkpoints.reading.plain import EMA
from mimbench.checkpoints.reading.staged import PREFIXES, depths_of, under
from mimbench.networks.levels import LevelSpec
from mimbench.system.errors import UserError

NAME = "convnext"

S = r"stages\.(\d+)\.(\d+)\."
NAMES = [
    (r"downsample_layers\.0\.(\d)\.(.*)", r"stem.\1.\2"),
    (r"downsample_layers\.(\d)\.(\d)\.(.*)", r"stages.\1.downsample.\2.\3"),
    (S + r"dwconv\.(.*)", r"stages.\1.blocks.\2.conv_dw.\3"),
    (S + r"pwconv([12])\.(.*)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
    (S + r"grn\.gamma", r"stages.\1.blocks.\2.mlp.grn.weight"),
    (S + r"grn\.beta", r"stages.\1.blocks.\2.mlp.grn.bias"),
    (S + r"(.*)", r"stages.\1.blocks.\2.\3"),
    (r"norm\.(.*)", r"head.norm.\1"),
]
EXTRAS = [
    (r"head\.(fc\.)?(weight|bias)", "classifier head"),
    (r"norms\..*|norm_pre\..*", "norm stored twice"),
    (r"projectors\..*", "projection head"),
]
SIZES: dict[tuple[tuple[int, ...], int], str] = {
    ((2, 2, 6, 2), 40): "atto",
    ((2, 2, 6, 2), 48): "femto",
    ((2, 2, 6, 2), 64): "pico",
    ((2, 2, 8, 2), 80): "nano",
    ((3, 3, 9, 3), 96): "tiny",
    ((3, 3, 27, 3), 96): "small",
    ((3, 3, 27, 3), 128): "base",
    ((3, 3, 27, 3), 192): "large",
    ((3, 3, 27, 3), 256): "xlarge",
    ((3, 3, 27, 3), 352): "huge",
}
ANCHORS = (
    "stages.0.0.dwconv.weight",
    "stages.0.0.dwconv.kernel",
    "stages.0.blocks.0.conv_dw.weight",
)


def claims(raw: Raw) -> bool:
    """Return whether a stage's first block begins with a depthwise convolution."""
    return any(f"{prefix}{anchor}" in raw.names for prefix in PREFIXES for anchor in ANCHORS)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the network; of a file that FCMAE only pre-trained there is no norm before a head."""
    offers = {"ema": EMA, "teacher": ("teacher",), "student": ("student", *PLAIN)}
    which, state, networks = choose(raw, offers, options.which)
    anchor = next(a for a in ANCHORS if any(f"{p}{a}" in state for p in PREFIXES))
    inner, beside = under(state, anchor)
    sparse = anchor.endswith("kernel")
    if sparse:
        inner = {_dense_name(name): _dense(name, value) for name, value in inner.items()}
    tensors, groups = rename(inner, NAMES, EXTRAS)
    tensors = {
        n: t.reshape(-1) if ".grn." in n or n.endswith("bias") else t for n, t in tensors.items()
    }
    return Converted(
        spec=_spec(tensors),
        tensors=tensors,
        extras=beside | groups | container_extras(raw, [*EMA, *PLAIN, "student", "teacher"]),
        notes=("FCMAE's sparse kernels were turned into dense ones (exact)",) if sparse else (),
        which=which,
        networks=networks,
    )


def _dense_name(name: str) -> str:
    """Return a name without what MinkowskiEngine's modules add."""
    name = re.sub(r"\.kernel$", ".weight", name)
    return re.sub(r"\.(ln|linear)\.(weight|bias)$", r".\2", name)


def _dense(name: str, value: Any) -> Any:
    """Return a sparse kernel (places, [in,] out) as a convolution's, rows and columns exchanged."""
    if not name.endswith(".kernel") or not isinstance(value, Tensor):
        return value
    side = math.isqrt(value.shape[0])
    if side * side != value.shape[0] or value.dim() not in (2, 3):
        raise UserError(f"{name} has shape {tuple(value.shape)}: no square kernel")
    if value.dim() == 2:
        value = value[:, None]
    return value.permute(2, 1, 0).unflatten(2, (side, side)).transpose(2, 3).contiguous()


def _spec(tensors: Tensors) -> LevelSpec:
    depths = depths_of(list(tensors), r"stages\.(\d+)\.blocks\.(\d+)\.")
    norms = [f"stages.{s}.blocks.0.norm.weight" for s in range(len(depths))]
    if missing := [name for name in norms if name not in tensors]:
        raise UserError(f"missing {missing[0]}")
    widths = [int(tensors[name].shape[0]) for name in norms]
    second = any(".grn." in name for name in tensors)
    family = "convnextv2" if second else "convnext"
    size = SIZES.get((depths, widths[0]), "")
    options: dict[str, Any] = {"depths": list(depths), "dims": widths}
    if not second and "stages.0.blocks.0.gamma" not in tensors:
        options["ls_init_value"] = None
    if second and "stages.0.blocks.0.gamma" in tensors:
        options["ls_init_value"] = 1e-6
    label = "ConvNeXtV2" if second else "ConvNeXt"
    shape = size.upper()[:1] if size not in ("xlarge", "") else "XL" if size else ""
    return LevelSpec(
        architecture=f"{family}_tiny",
        options=options,
        final_norm="head.norm.weight" in tensors,
        name=f"{label}-{shape or f'{widths[0]}x{sum(depths)}'}",
    )
