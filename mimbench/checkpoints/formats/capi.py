"""CAPI files: RMS norms, no biases in blocks, registers along the border, a decoder beside."""

import torch
from torch import Tensor

from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    Tensors,
    choose,
    container_extras,
    fuse_qkv,
    rename,
)
from mimbench.system.errors import UserError
from mimbench.vit.rotary import capi_frequencies

NAME = "capi"

V = r"(?:backbone\.)?"
B = V + r"encoder\.blocks\.(\d+)\."
NAMES = [
    (V + r"patch_embed\.(weight|bias)", r"patch_embed.proj.\1"),
    (V + r"registers", "reg_token"),
    (B + r"residual([12])\.norm\.(.*)", r"blocks.\1.norm\2.\3"),
    (B + r"residual1\.fn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (B + r"residual1\.fn\.proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (B + r"residual1\.fn\.rope\.freqs", r"blocks.\1.freqs"),
    (B + r"residual2\.fn\.(.*)", r"blocks.\1.mlp.\2"),
]
EXTRAS = [
    (V + r"decoder\..*", "predictor"),
    (V + r"mask_token", "mask token"),
    (r"(?!backbone\.|encoder\.|patch_embed\.).*(head|cluster|layer)\..*", "clustering heads"),
]
FAMILY = Family(
    norm="rms",
    norm_eps=1e-5,
    position="rotary",
    rotation="bordered",
    pool="avg",
    # no table shows a grid: 224 with patches of 14
    grid=(16, 16),
    requires=("reg_token", "patch_embed.proj.bias"),
)
EXACT, ROUNDED = 1e-5, 1e-2
"""Relative difference of stored frequencies: none, or that of bfloat16."""


def claims(raw: Raw) -> bool:
    """Return whether blocks hold a rotation's frequencies inside a residual."""
    return raw.has(B + r"residual1\.fn\.rope\.freqs")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; the image vector is the mean of the patches."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    frequencies = {n: tensors.pop(n) for n in [*tensors] if n.endswith(".freqs")}
    tensors = fuse_qkv(tensors)
    if "reg_token" in tensors:
        # the last norm has no parameters
        tensors["norm.weight"] = torch.ones_like(tensors["reg_token"].flatten(0, -2)[0])
    spec, asked = infer_spec(tensors, FAMILY, options.num_heads)
    rounded = check_frequencies(frequencies, spec.head_dim)
    notes = (
        "the image vector is the mean of the patches; the authors' own comes from the predictor",
        "the last norm has no parameters: its weight is one",
    )
    if rounded:
        notes += ("frequencies are stored rounded; features are computed with the exact ones",)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | {"rotation (fixed)": len(frequencies)} | container_extras(raw, PLAIN),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def check_frequencies(stored: Tensors, width: int) -> bool:
    """Return whether stored frequencies are rounded; refuse others than CAPI's, which stay untrained."""
    fixed, rounded = capi_frequencies(width), False
    for name, found in stored.items():
        if not isinstance(found, Tensor) or found.is_meta:
            continue
        real = found.shape == fixed.shape and not found.is_complex()
        if not real or not torch.allclose(found.float(), fixed, rtol=ROUNDED, atol=1e-6):
            raise UserError(
                f"{name} are not the frequencies of CAPI for heads of width {width}: wrong number of heads, "
                "or a rotation that was trained"
            )
        rounded |= not torch.allclose(found.float(), fixed, rtol=EXACT, atol=1e-6)
    return rounded
