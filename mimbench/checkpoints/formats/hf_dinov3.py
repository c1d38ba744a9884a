"""Hugging Face DINOv3 ViT."""

from mimbench.checkpoints.reading.huggingface import family_from, notes_for
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    rename,
)
from mimbench.checkpoints.reading.rotary import FAMILY, finish
from mimbench.system.errors import UserError
from mimbench.vit.positions import ROTATION_BASE

NAME = "hf-dinov3"

P = r"(?:(?:dinov3_vit|model|encoder|backbone)\.)*"
LAYER = P + r"layer\.(\d+)\."
NAMES = [
    (P + r"embeddings\.cls_token", "cls_token"),
    (P + r"embeddings\.register_tokens", "reg_token"),
    (P + r"embeddings\.patch_embeddings\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"(norm[12])\.(.*)", r"blocks.\1.\2.\3"),
    (LAYER + r"attention\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.o_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"mlp\.gate_proj\.(.*)", r"blocks.\1.mlp.gate.\2"),
    (LAYER + r"mlp\.down_proj\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (P + r"norm\.(weight|bias)", r"norm.\1"),
]
UP = LAYER + r"mlp\.up_proj\.(.*)"
EXTRAS = [
    (P + r"embeddings\.mask_token", "mask token"),
    (r"classifier\..*", "classifier head"),
]


def claims(raw: Raw) -> bool:
    """Return whether the layers' projections carry Hugging Face's names for DINOv3."""
    return raw.has(LAYER + r"attention\.o_proj\.weight") and raw.has(
        P + r"embeddings\.patch_embeddings\.weight"
    )


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder with query, key and value joined."""
    base = raw.config.get("rope_theta", ROTATION_BASE)
    if base != ROTATION_BASE:
        raise UserError(f"config.json: rope_theta is {base}, only {ROTATION_BASE:g} is supported")
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    gated = raw.has(LAYER + r"mlp\.gate_proj\.weight")
    up = (UP, r"blocks.\1.mlp.up.\2") if gated else (UP, r"blocks.\1.mlp.fc1.\2")
    tensors, groups = rename(state, [*NAMES, up], EXTRAS)
    tensors, spec, asked = finish(tensors, family_from(raw, FAMILY), options)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=notes_for(raw, FAMILY),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
