"""AIMv2 files under Apple's names: RMS norms, gated MLPs, no biases in blocks, no class token."""

from mimbench.checkpoints.reading.architecture import CLIP_MEAN, CLIP_STD, Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    pack_gates,
    rename,
)

NAME = "aimv2"

B = r"trunk\.blocks\.(\d+)\."
NAMES = [
    (r"preprocessor\.pos_embed", "pos_embed"),
    (r"preprocessor\.patchifier\.(.*)", r"patch_embed.\1"),
    (r"trunk\.post_trunk_norm\.(.*)", r"norm.\1"),
    (B + r"norm_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (B + r"mlp\.fc1\.(.*)", r"blocks.\1.mlp.gate.\2"),
    (B + r"mlp\.fc3\.(.*)", r"blocks.\1.mlp.up.\2"),
    (B + r"(.*)", r"blocks.\1.\2"),
]
EXTRAS = [(r"head\..*", "attentional head")]
HEADS = {1024: 8, 1536: 12, 2048: 16, 3072: 24}
"""Heads of width 128."""
FAMILY = Family(
    heads=HEADS,
    norm="rms",
    norm_eps=1e-5,
    position_rule="bicubic-antialias",
    pool="avg",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    requires=("patch_embed.norm.weight", "norm.weight"),
)


def claims(raw: Raw) -> bool:
    """Return whether Apple's trunk has gated MLPs (AIM v1, which has none, computes its positions)."""
    return raw.has(B + r"mlp\.fc3\.weight") and raw.has(r"preprocessor\.pos_embed")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the trunk; the image vector is the mean of the patches."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    spec, asked = infer_spec(pack_gates(tensors), FAMILY, options.num_heads)
    return Converted(
        spec=spec,
        tensors=pack_gates(tensors),
        extras=groups | container_extras(raw, PLAIN),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
