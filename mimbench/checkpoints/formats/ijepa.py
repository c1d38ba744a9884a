"""I-JEPA training files: plain names, no class token, a table of patches alone."""

from mimbench.checkpoints.reading import architecture
from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain

NAME = "ijepa"

OFFERS = {"teacher": ("target_encoder",), "student": ("encoder",)}
EXTRAS = [(r"head\..*", "classifier head")]
HEADS = architecture.HEADS | {1408: 16}
FAMILY = Family(
    heads=HEADS,
    pool="avg",
    # the official resize takes the first patch for a class row and fails; this is timm's
    position_rule="bicubic-antialias",
    requires=("patch_embed.proj.bias", "norm.weight"),
)


def claims(raw: Raw) -> bool:
    """Return whether a target encoder stands beside the encoder and a predictor."""
    return "target_encoder" in raw.networks and "patch_embed.proj.weight" in raw.networks.get(
        "encoder", {}
    )


def convert(raw: Raw, options: Options) -> Converted:
    """Return the target encoder, which I-JEPA evaluates; the context encoder is the student."""
    return convert_plain(raw, options, offers=OFFERS, extras=EXTRAS, family=FAMILY)
