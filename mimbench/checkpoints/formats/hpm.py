"""HPM pretraining files: student and EMA teacher; `model` is the architecture's name there."""

from dataclasses import replace

from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain

NAME = "hpm"

EXTRAS = [
    (r"decoder_(blocks|norm|pred)_losspred\..*", "loss predictor"),
    (r"decoder_.*", "decoder"),
    (r"(vis_)?mask_token", "mask token"),
]


def claims(raw: Raw) -> bool:
    """Return whether a loss predictor is there."""
    return raw.has(r"decoder_pred_losspred\.weight")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the student; the EMA teacher with `which` 'ema' (or 'teacher', its role)."""
    if options.which == "teacher":
        options = replace(options, which="ema")
    offers = {"student": ("state_dict", "model", ""), "ema": ("ema_state_dict",)}
    return convert_plain(raw, options, offers=offers, extras=EXTRAS)
