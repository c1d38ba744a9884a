"""DINOv3 ViTs under Meta's own names or timm's: rotary positions, registers, LayerScale."""

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

NAME = "dinov3"

OFFERS = {"teacher": ("teacher", *PLAIN), "student": ("student",)}
B = r"(?:backbone\.)?"
NAMES = [
    (B + r"storage_tokens", "reg_token"),
    (B + r"rope_embed\.periods", "periods"),
    (B + r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
    (B + r"blocks\.(\d+)\.mlp\.(?:w1|fc1_g)\.(.*)", r"blocks.\1.mlp.gate.\2"),
    (B + r"blocks\.(\d+)\.mlp\.(?:w2|fc1_x)\.(.*)", r"blocks.\1.mlp.up.\2"),
    (B + r"blocks\.(\d+)\.mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"backbone\.(.*)", r"\1"),
]
EXTRAS = [
    (B + r"mask_token", "mask token"),
    (B + r"local_cls_norm\..*", "norm of local crops"),
    (r"(dino_head|ibot_head|gram_backbone|head)\..*", "projection head"),
]


def claims(raw: Raw) -> bool:
    """Return whether Meta's register name or rotary periods are there, or timm's form of both."""
    timms = (
        raw.has(r"blocks\.0\.gamma_1")
        and "reg_token" in raw.names
        and not raw.has(r"pos_embed|.*relative_position_bias_table")
    )
    return timms or raw.has(B + r"(storage_tokens|rope_embed\.periods)")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; the masked key bias is zero."""
    which, state, networks = choose(raw, OFFERS, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors, spec, asked = finish(tensors, FAMILY, options)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, ("teacher", "student", *PLAIN)),
        which=which,
        networks=networks,
        heads_asked=asked,
    )
