"""OpenAI CLIP and OpenCLIP: the visual tower, under CLIP's own names or as a timm tower."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from mimbench.checkpoints.reading.architecture import CLIP_MEAN, CLIP_STD, PARTS, Family, infer_spec
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

NAME = "clip"

BLOCK = r"visual\.transformer\.resblocks\.(\d+)\."
NAMES = [
    (r"visual\.class_embedding", "cls_token"),
    (r"visual\.positional_embedding", "pos_embed"),
    (r"visual\.conv1\.(.*)", r"patch_embed.proj.\1"),
    (r"visual\.ln_pre\.(.*)", r"norm_pre.\1"),
    (r"visual\.ln_post\.(.*)", r"norm.\1"),
    (BLOCK + r"attn\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
    (BLOCK + r"attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (BLOCK + r"ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (BLOCK + r"mlp\.c_fc\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (BLOCK + r"mlp\.c_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (BLOCK + r"ls_([12])\.gamma", r"blocks.\1.ls\2.gamma"),
    (r"visual\.trunk\.(.*)", r"\1"),
]
EXTRAS = [
    (r"visual\.(trunk\.)?attn_pool\..*", "attentional pooling"),
    (r"visual\.proj|visual\.head\..*|visual\.trunk\.head\..*", "projection"),
    (r"logit_(scale|bias)|input_resolution|context_length|vocab_size", "scalars"),
    (r"(?!visual\.).*", "text tower"),
]
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}


def claims(raw: Raw) -> bool:
    """Return whether a visual tower is there."""
    if is_perception_encoder(raw):
        return False
    return raw.has(r"visual\.class_embedding") or raw.has(r"visual\.trunk\.blocks\.0\..*")


TOWER = r"(?:visual\.)?transformer\.resblocks\.0\.attn\.in_proj_weight"
PAIR = r"visual\.(proj|attn_pool\.query)|token_embedding\.weight|ln_final\..*|text\..*"
"""What CLIP's files hold beside the visual tower's blocks."""


def is_perception_encoder(raw: Raw) -> bool:
    """Return whether CLIP's tower has PE's pooling probe, or stands without projection and text tower."""
    if not raw.has(TOWER) or not raw.has(r"(?:visual\.)?conv1\.weight"):
        return False
    return raw.has(r"(?:visual\.)?attn_pool\.probe") or not raw.has(PAIR)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the visual tower before its projection."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors = unsqueezed(tensors)
    family, notes = _family(state)
    if any(group == "attentional pooling" for group in groups):
        notes = (*notes, "the attentional pooling head is left out: features are the tokens")
    spec, asked = infer_spec(tensors, family, options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def unsqueezed(tensors: Tensors) -> Tensors:
    """Return the tensors with batch dimensions where CLIP has none."""
    out = dict(tensors)
    for name, dims in (("cls_token", 1), ("pos_embed", 2)):
        value = out.get(name)
        if isinstance(value, Tensor) and value.dim() == dims:
            out[name] = value.reshape(1, -1, value.shape[-1])
    return out


def _family(state: dict[str, Any]) -> tuple[Family, tuple[str, ...]]:
    if any(name.startswith("visual.trunk.") for name in state):
        pooled = any(".attn_pool." in name for name in state)
        family = Family(
            position_rule="bicubic-antialias",
            mean=CLIP_MEAN,
            std=CLIP_STD,
            requires=PARTS[1:] if pooled else PARTS,
        )
        return family, ("a timm tower: CLIP's image statistics assumed",)
    family = Family(
        heads=HEADS,
        norm_eps=1e-5,
        position_rule="bicubic-antialias",
        mean=CLIP_MEAN,
        std=CLIP_STD,
        requires=("cls_token", "norm_pre.weight", "norm.weight"),
    )
    if "input_resolution" in state:
        return replace(family, activation="quick_gelu"), ("OpenAI's file: QuickGELU",)
    note = (
        "the file does not say its activation: GELU assumed; for OpenAI's weights and "
        "'quickgelu' configurations `export --to native --set activation=quick_gelu`"
    )
    return family, (note,)
