"""OpenAI CLIP and OpenCLIP: the visual tower, under CLIP's own names or as a timm tower."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mimbench.checkpoints.reading.architecture import (
    CLIP_MEAN,
    CLIP_STD,
    PARTS,
    UNSAID,
    Family,
    activation_of,
    infer_spec,
)
from mimbench.checkpoints.reading.huggingface import normalisation
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
from mimbench.system.errors import UserError
from mimbench.vit import sizes
from mimbench.vit.weights import Activation

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
HEADS = {width: heads for width, heads in sizes.HEADS.items() if width >= 384} | {
    1408: 16,
    1664: 16,
}


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
    family, notes = _family(raw, state, options.activation)
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


def _family(raw: Raw, state: dict[str, Any], said: str | None) -> tuple[Family, tuple[str, ...]]:
    vision, settings = _settings(raw)
    family = Family(position_rule="bicubic-antialias", mean=CLIP_MEAN, std=CLIP_STD)
    family = replace(family, **settings)
    if any(name.startswith("visual.trunk.") for name in state):
        pooled = any(".attn_pool." in name for name in state)
        notes = () if settings else ("a timm tower: CLIP's image statistics assumed",)
        family = replace(family, requires=PARTS[1:] if pooled else PARTS, bare_rows=True)
        return family, notes
    activation, note = _activation(vision, state, said)
    family = replace(
        family,
        heads=HEADS,
        norm_eps=1e-5,
        activation=activation,
        requires=("cls_token", "norm_pre.weight", "norm.weight"),
    )
    return family, (note,)


def _activation(
    model: Mapping[str, Any] | None, state: Mapping[str, Any], said: str | None
) -> tuple[Activation, str]:
    """Return the activation and who says so; OpenAI's and OpenCLIP's files have the same names."""
    if "input_resolution" in state:
        # only the archives that OpenAI released carry it, and all of them were trained so
        return "quick_gelu", "OpenAI's file: QuickGELU"
    if model is not None:
        quick = model.get("quick_gelu", False)
        if not isinstance(quick, bool):
            raise UserError("open_clip_config.json: quick_gelu is neither true nor false")
        kind: Activation = "quick_gelu" if quick else "gelu"
        return kind, f"open_clip_config.json: {kind}"
    if said is None:
        raise UserError(UNSAID.format(folder="open_clip_config.json"))
    return activation_of(said), f"{said}, as said by hand"


def _settings(raw: Raw) -> tuple[Mapping[str, Any] | None, dict[str, Any]]:
    """Return the model's settings in OpenCLIP's configuration, and the image statistics there."""
    if not raw.open_clip:
        return None, {}
    model, images = raw.open_clip.get("model_cfg"), raw.open_clip.get("preprocess_cfg", {})
    if not isinstance(model, Mapping) or not isinstance(images, Mapping):
        raise UserError("open_clip_config.json: model_cfg or preprocess_cfg is not an object")
    named = {"image_mean": images.get("mean"), "image_std": images.get("std")}
    return model, normalisation(named, "open_clip_config.json")
