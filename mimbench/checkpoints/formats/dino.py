"""DINO files: training checkpoints with student and teacher, and bare backbones."""

from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import PLAIN, Converted, Options, Raw
from mimbench.checkpoints.reading.plain import convert_plain, plain_kind

NAME = "dino"

OFFERS = {"teacher": ("teacher",), "student": ("student",)}
NAMES = [(r"backbone\.(.*)", r"\1")]
EXTRAS = [
    (r"head\..*", "projection head"),
    (r"(backbone\.)?(masked_embed|mask_token)", "mask token"),
]
FAMILY = Family(position_rule="bicubic-offset")


def is_pair(raw: Raw) -> bool:
    """Return whether the file holds a student or teacher of a plain ViT."""
    return (
        bool({"student", "teacher"} & raw.networks.keys())
        and raw.has(r"(backbone\.)?blocks\.0\.attn\.qkv\.weight")
        and not raw.has(r"(backbone\.)?blocks\.(\d+\.)?0\.ls1\.gamma|.*storage_tokens")
    )


def is_ibot(raw: Raw) -> bool:
    """Return whether patch tokens were trained too: iBOT's loss or its mask token is there."""
    return "ibot_loss" in raw.top or raw.has(r"(backbone\.)?masked_embed")


def claims(raw: Raw) -> bool:
    """Return whether it is a pair without iBOT's marks, or a bare backbone with learned positions."""
    return (is_pair(raw) and not is_ibot(raw)) or plain_kind(raw) == "dino"


def convert(raw: Raw, options: Options) -> Converted:
    """Return the teacher, or the student when asked for."""
    offers = OFFERS if is_pair(raw) else {"teacher": PLAIN}
    return convert_plain(raw, options, offers=offers, names=NAMES, extras=EXTRAS, family=FAMILY)
