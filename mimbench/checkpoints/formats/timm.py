"""timm and DeiT files, and any other plain ViT with a head: `.pth` or `.safetensors`."""

from dataclasses import replace
from typing import Any

from mimbench.checkpoints.reading.architecture import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    UNSAID,
    Family,
    activation_of,
)
from mimbench.checkpoints.reading.layout import PLAIN, Converted, Options, Raw
from mimbench.checkpoints.reading.plain import EMA, convert_plain, plain_kind
from mimbench.checkpoints.reading.settings import said_statistics, told_by_architecture
from mimbench.system.errors import UserError
from mimbench.vit.weights import Activation

NAME = "timm"

NAMES = [
    (r"dist_token", "reg_token"),
    (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
]
PARTS_OF_TIMM = (
    "cls_token|fc_norm.weight",
    "patch_embed.proj.bias|norm_pre.weight",
    "norm.weight|fc_norm.weight",
)
EXTRAS = [
    (r"(head|head_dist|head_drop)\..*", "classifier head"),
    (r"mask_token", "mask token"),
    (r"attn_pool\..*", "attentional pooling"),
]


def claims(raw: Raw) -> bool:
    """Return whether names are plain and more than a bare backbone's, or timm's config says so."""
    return plain_kind(raw) == "timm"


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder; of a training file the averaged weights, as timm itself prefers."""
    offers = {"ema": EMA, "student": PLAIN}
    converted = convert_plain(
        raw,
        options,
        offers=offers,
        names=NAMES,
        extras=EXTRAS,
        family=family(raw, options.activation),
    )
    notes = () if said_statistics(raw) else (normalisation_note(family(raw, options.activation)),)
    if "attentional pooling" in converted.extras:
        notes += ("the attentional pooling head is left out: features are the tokens",)
    return replace(converted, notes=notes)


def family(raw: Raw, said: str | None = None) -> Family:
    """Return timm's conventions with what its `config.json` says of input and activation.

    Args:
        raw: The file.
        said: The activation, as the user says it.
    """
    settings = Family(position_rule="bicubic-antialias", requires=PARTS_OF_TIMM, bare_rows=True)
    if "cls_token" not in raw.names:
        settings = replace(settings, pool="avg", requires=PARTS_OF_TIMM[1:])
    if "norm_pre.weight" in raw.names:
        settings = replace(
            settings,
            norm_eps=1e-5,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            activation=_activation(raw.config.get("architecture"), said),
        )
    settings = replace(settings, **told_by_architecture(raw))
    if images := said_statistics(raw):
        return replace(settings, mean=images[0], std=images[1])
    return replace(settings, mean=HALF, std=HALF) if _classes(raw) in (21841, 21843) else settings


def _activation(architecture: Any, said: str | None) -> Activation:
    """Return the activation of a timm CLIP tower, whose name says it: the tensors are the same."""
    if isinstance(architecture, str):
        return "quick_gelu" if "quickgelu" in architecture else "gelu"
    if said is None:
        raise UserError(UNSAID.format(folder="config.json"))
    return activation_of(said)


def normalisation_note(settings: Family) -> str:
    """Return the warning that an input normalisation is assumed."""
    used = f"mean {settings.mean} and std {settings.std}"
    return (
        f"the file does not say how images are normalised: {used} assumed; "
        "if the model's card says otherwise, `export --to native --set mean=[...] --set std=[...]`"
    )


def _classes(raw: Raw) -> int:
    heads = [s["head.weight"] for s in raw.networks.values() if "head.weight" in s]
    return int(heads[0].shape[0]) if heads and getattr(heads[0], "ndim", 0) == 2 else 0
