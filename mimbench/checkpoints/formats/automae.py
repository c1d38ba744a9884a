"""AutoMAE pretraining files: MAE with a frozen scorer; the discriminator is a separate entry."""

from mimbench.checkpoints.reading.layout import PLAIN, Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain

NAME = "automae"

EXTRAS = [
    (r"decoder_.*", "decoder"),
    (r"scorer_pred\..*", "scorer"),
    (r"mask_token", "mask token"),
]


def claims(raw: Raw) -> bool:
    """Return whether the scorer's head is there."""
    return raw.has(r"scorer_pred\.main\.0\.weight")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder."""
    return convert_plain(raw, options, offers={"student": PLAIN}, extras=EXTRAS)
