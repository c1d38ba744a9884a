"""MAE files: encoder only, encoder with decoder, and training checkpoints."""

from mimbench.checkpoints.reading.layout import PLAIN, Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain, plain_kind

NAME = "mae"

EXTRAS = [(r"decoder_.*", "decoder"), (r"mask_token", "mask token")]


def claims(raw: Raw) -> bool:
    """Return whether MAE's decoder is there, or a bare encoder on MAE's fixed table."""
    if raw.has(r"decoder_pred\.weight"):
        return not raw.has(r"decoder_pred_losspred\.weight|scorer_pred\..*")
    return plain_kind(raw) == "mae"


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder."""
    return convert_plain(raw, options, offers={"student": PLAIN}, extras=EXTRAS)
