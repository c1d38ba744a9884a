"""Hugging Face Dinov2, with and without registers."""

from mimbench.checkpoints.formats.dinov2 import REGISTERS_NOTE, split_positions
from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.huggingface import family_from, notes_for
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    fuse_qkv,
    rename,
)

NAME = "hf-dinov2"

P = r"(?:(?:dinov2|dinov2_with_registers|model)\.)*"
LAYER = P + r"encoder\.layer\.(\d+)\."
NAMES = [
    (P + r"embeddings\.cls_token", "cls_token"),
    (P + r"embeddings\.register_tokens", "reg_token"),
    (P + r"embeddings\.position_embeddings", "pos_embed"),
    (P + r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"(norm[12])\.(.*)", r"blocks.\1.\2.\3"),
    (LAYER + r"attention\.attention\.(q)uery\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.attention\.(k)ey\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.attention\.(v)alue\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (LAYER + r"mlp\.weights_in\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"mlp\.weights_out\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (LAYER + r"mlp\.(fc[12])\.(.*)", r"blocks.\1.mlp.\2.\3"),
    (P + r"layernorm\.(weight|bias)", r"norm.\1"),
]
EXTRAS = [
    (P + r"embeddings\.mask_token", "mask token"),
    (r"classifier\..*", "classifier head"),
]


def claims(raw: Raw) -> bool:
    """Return whether the layers carry LayerScale under Hugging Face's name."""
    return raw.has(LAYER + r"layer_scale1\.lambda1")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder with query, key and value joined."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors = fuse_qkv(tensors)
    default = Family(position_rule="bicubic-offset")
    notes: tuple[str, ...] = ()
    if "reg_token" in tensors:
        tensors, notes = split_positions(tensors), (REGISTERS_NOTE,)
        default = Family(position_rule="bicubic-antialias")
    spec, asked = infer_spec(tensors, family_from(raw, default), options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=(*notes, *notes_for(raw, default)),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
