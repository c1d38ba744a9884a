"""iBOT and AttMask training files: DINO's layout with a mask token and a second head."""

from mimbench.checkpoints.formats import dino
from mimbench.checkpoints.reading.layout import Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain

NAME = "ibot"


def claims(raw: Raw) -> bool:
    """Return whether it is a student-teacher pair with iBOT's marks."""
    return dino.is_pair(raw) and dino.is_ibot(raw)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the teacher, or the student when asked for."""
    return convert_plain(
        raw,
        options,
        offers=dino.OFFERS,
        names=dino.NAMES,
        extras=dino.EXTRAS,
        family=dino.FAMILY,
    )
