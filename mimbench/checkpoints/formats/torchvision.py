"""torchvision's ViTs: `encoder.layers.encoder_layer_<i>`, supervised or fine-tuned."""

from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import PLAIN, Converted, Options, Raw
from mimbench.checkpoints.reading.plain import EMA, convert_plain

NAME = "torchvision"

LAYER = r"encoder\.layers\.encoder_layer_(\d+)\."
NAMES = [
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
    (r"encoder\.ln\.(.*)", r"norm.\1"),
    (LAYER + r"ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (LAYER + r"self_attention\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
    (LAYER + r"self_attention\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (LAYER + r"mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (LAYER + r"mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
]
EXTRAS = [(r"heads\..*", "classifier head"), (r"n_averaged", "step count")]


def claims(raw: Raw) -> bool:
    """Return whether layers are numbered as torchvision does."""
    return raw.has(LAYER + r"ln_1\.weight") and raw.has(r"conv_proj\.weight")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; torchvision's ViTs are normalised with ImageNet's statistics."""
    offers = {"ema": EMA, "student": PLAIN}
    return convert_plain(raw, options, offers=offers, names=NAMES, extras=EXTRAS, family=Family())
