"""Hugging Face ViT, DeiT, DINO and MSN exports, and ViTMAE: folders, safetensors, `.bin`."""

from mimbench.checkpoints.reading.architecture import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Family,
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

NAME = "hf-vit"

P = r"(?:(?:vit|deit|vit_mae|vit_msn|model)\.)*"
LAYER = P + r"encoder\.layer\.(\d+)\."
NAMES = [
    (P + r"embeddings\.cls_token", "cls_token"),
    (P + r"embeddings\.distillation_token", "reg_token"),
    (P + r"embeddings\.position_embeddings", "pos_embed"),
    (P + r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (LAYER + r"layernorm_before\.(.*)", r"blocks.\1.norm1.\2"),
    (LAYER + r"layernorm_after\.(.*)", r"blocks.\1.norm2.\2"),
    (LAYER + r"attention\.attention\.(q)uery\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.attention\.(k)ey\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.attention\.(v)alue\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attention\.output\.dense\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"intermediate\.dense\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"output\.dense\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (P + r"layernorm\.(weight|bias)", r"norm.\1"),
]
EXTRAS = [
    (P + r"embeddings\.mask_token", "mask token"),
    (r"decoder\..*", "decoder"),
    (P + r"pooler\.dense\..*", "pooler"),
    (r"(classifier|cls_classifier|distillation_classifier)\..*", "classifier head"),
]


def claims(raw: Raw) -> bool:
    """Return whether the layers are ViT's: two layer norms and no relative positions."""
    return raw.has(LAYER + r"layernorm_before\.weight") and not raw.has(
        r".*relative_position_bias_table"
    )


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder with query, key and value joined."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    mae = raw.has(r"decoder\.decoder_embed\.weight")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if mae else (HALF, HALF)
    default = Family(norm_eps=1e-12, mean=mean, std=std)
    family = family_from(raw, default)
    tensors = fuse_qkv(tensors)
    spec, asked = infer_spec(tensors, family, options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=notes_for(raw, default),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
