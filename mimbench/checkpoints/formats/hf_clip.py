"""Hugging Face's CLIP and SigLIP: the vision model of a pair, or alone."""

from dataclasses import replace

from mimbench.checkpoints.formats.clip import HEADS, unsqueezed
from mimbench.checkpoints.reading.architecture import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    UNSAID,
    Family,
    activation_of,
    infer_spec,
)
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
from mimbench.system.errors import UserError

NAME = "hf-clip"

P = r"(?:vision_model\.)+"
LAYER = P + r"encoder\.layers\.(\d+)\."
NAMES = [
    (P + r"embeddings\.class_embedding", "cls_token"),
    (P + r"embeddings\.position_embedding\.weight", "pos_embed"),
    (P + r"embeddings\.patch_embedding\.(.*)", r"patch_embed.proj.\1"),
    (P + r"pre_layrnorm\.(.*)", r"norm_pre.\1"),
    (P + r"post_layernorm\.(.*)", r"norm.\1"),
    (LAYER + r"layer_norm([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (LAYER + r"self_attn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"self_attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"mlp\.(fc[12])\.(.*)", r"blocks.\1.mlp.\2.\3"),
]
EXTRAS = [
    (P + r"embeddings\.position_ids", "position index (computed)"),
    (P + r"head\..*", "attentional pooling"),
    (r"(text_model|text_projection)\..*", "text tower"),
    (r"visual_projection\..*", "projection"),
    (r"logit_(scale|bias)", "scalars"),
    (r"classifier\..*", "classifier head"),
]
CLIP = Family(
    heads=HEADS,
    norm_eps=1e-5,
    activation="quick_gelu",
    position_rule="bicubic-antialias",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    requires=("cls_token", "norm_pre.weight"),
)
SIGLIP = Family(
    heads={768: 12, 1024: 16, 1152: 16, 1536: 16},
    activation="gelu_tanh",
    position_rule="bicubic-antialias",
    pool="avg",
    mean=HALF,
    std=HALF,
    requires=("patch_embed.proj.bias", "norm.weight"),
)


def claims(raw: Raw) -> bool:
    """Return whether the layers of a vision model have CLIP's names."""
    return raw.has(LAYER + r"self_attn\.q_proj\.weight") and raw.has(
        P + r"embeddings\.patch_embedding\.weight"
    )


def convert(raw: Raw, options: Options) -> Converted:
    """Return the vision model before its projection or pooling head."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors = fuse_qkv(unsqueezed(tensors))
    default = CLIP if "cls_token" in tensors else SIGLIP
    family = family_from(raw, default)
    if default is CLIP and not raw.config:
        # OpenAI's weights and OpenCLIP's have the same names here too
        if options.activation is None:
            raise UserError(UNSAID.format(folder="config.json"))
        family = replace(family, activation=activation_of(options.activation))
    spec, asked = infer_spec(tensors, family, options.num_heads)
    notes = notes_for(raw, default)
    if "attentional pooling" in groups:
        notes += ("the attentional pooling head is left out: features are the tokens",)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )
