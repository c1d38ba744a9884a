"""mmpretrain and mmselfsup ViTs, and those converted for mmseg."""

from mimbench.checkpoints.formats.mocov3 import FAMILY as MOCO
from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    rename,
)

NAME = "mmpretrain"

P = r"(?:backbone\.)?"
LAYER = P + r"layers\.(\d+)\."
NAMES = [
    (P + r"(cls_token|pos_embed)", r"\1"),
    (P + r"patch_embed\.projection\.(.*)", r"patch_embed.proj.\1"),
    (LAYER + r"ln([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (LAYER + r"attn\.(qkv|proj)\.(.*)", r"blocks.\1.attn.\2.\3"),
    (LAYER + r"attn\.attn\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
    (LAYER + r"attn\.attn\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"ffn\.layers\.0\.0\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"ffn\.layers\.1\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (LAYER + r"attn\.gamma1\.weight", r"blocks.\1.ls1.gamma"),
    (LAYER + r"ffn\.gamma2\.weight", r"blocks.\1.ls2.gamma"),
    (P + r"pre_norm\.(.*)", r"norm_pre.\1"),
    (P + r"ln1\.(.*)", r"norm.\1"),
    (P + r"ln2\.(.*)", r"fc_norm.\1"),
]
EXTRAS = [
    (r"(neck|target_generator|momentum_encoder|data_preprocessor)\..*", "pre-training parts"),
    (r"(head|decode_head|auxiliary_head)\..*", "head"),
    (P + r"mask_token", "mask token"),
]


def claims(raw: Raw) -> bool:
    """Return whether the layers carry OpenMMLab's names."""
    return raw.has(LAYER + r"ln1\.weight") and raw.has(LAYER + r"ffn\.layers\.0\.0\.weight")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder."""
    which, state, networks = choose(raw, {"student": ("state_dict", *PLAIN)}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    # mmselfsup's MoCo v3 keeps MoCo's twelve heads of ViT-S
    family = MOCO if raw.has(r"momentum_encoder\..*") else Family()
    spec, asked = infer_spec(tensors, family, options.num_heads)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
