"""HPM pretraining files: student and EMA teacher; `model` is the architecture's name there."""

from mimbench.architecture import Family, infer_spec
from mimbench.layout import Converted, Options, Raw, choose, container_extras, rename

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
    """Return the student, or the EMA teacher with `which='ema'`."""
    offers = {"student": ["state_dict", "model", ""], "ema": ["ema_state_dict"]}
    if options.which == "teacher":
        options = Options(which="ema", num_heads=options.num_heads)
    which, state, networks = choose(raw, offers, options.which)
    tensors, extras = rename(state, [], EXTRAS)
    spec, asked = infer_spec(tensors, Family(), options.num_heads)
    extras |= container_extras(raw, ["state_dict", "model", "ema_state_dict"])
    return Converted(
        spec=spec, tensors=tensors, extras=extras, which=which, networks=networks, heads_asked=asked
    )
