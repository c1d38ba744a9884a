"""SimMIM pretraining files with a ViT: BEiT's names under `encoder.`."""

from dataclasses import replace

from mimbench.checkpoints.formats import beit
from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    strip_prefix,
)
from mimbench.system.errors import UserError

NAME = "simmim"


def claims(raw: Raw) -> bool:
    """Return whether an encoder with a mask token stands beside a one-layer decoder."""
    return raw.has(r"encoder\.mask_token") and raw.has(r"encoder\.blocks\..*")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; SimMIM pools by the mean of the patches."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    others = [n for n in state if not n.startswith(("encoder.", "decoder."))]
    if others:
        raise UserError(f"unexpected {others[0]} beside encoder and decoder")
    converted = beit.convert_state(strip_prefix(state, "encoder."), options, Family(pool="avg"))
    decoder = sum(name.startswith("decoder.") for name in state)
    return replace(
        converted,
        extras={**converted.extras, "decoder": decoder, **container_extras(raw, PLAIN)},
        which=which,
        networks=networks,
    )
