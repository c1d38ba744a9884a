"""Perception Encoder (core, lang, spatial): CLIP's names, rotary positions that no tensor shows."""

from dataclasses import replace

from torch import Tensor

from mimbench.checkpoints.formats import clip
from mimbench.checkpoints.reading.architecture import HALF, Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    choose,
    container_extras,
    rename,
)
from mimbench.vit import sizes

NAME = "pe"

CONTAINERS = ("weights", *PLAIN)
V = r"(?:visual\.)?"
NAMES = [(pattern.replace(r"visual\.", V), into) for pattern, into in clip.NAMES[:-1]]
EXTRAS = [
    (V + r"attn_pool\..*", "attentional pooling"),
    (V + r"proj", "projection"),
    (r"logit_(scale|bias)", "scalars"),
    (
        r"(positional|token)_embedding(\.weight)?|transformer\..*|ln_final\..*|text_projection",
        "text tower",
    ),
]
FAMILY = Family(
    heads={width: heads for width, heads in sizes.HEADS.items() if width <= 1024} | {1536: 16},
    norm_eps=1e-5,
    position="absolute+rotary",
    position_rule="bilinear",
    rotation="stepped",
    mean=HALF,
    std=HALF,
    requires=("norm_pre.weight",),
)


def claims(raw: Raw) -> bool:
    """Return whether CLIP's tower is a Perception Encoder's: its rotation cannot be seen."""
    return clip.is_perception_encoder(raw)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the tower; its image vector is the class token, or the mean of the patches without one."""
    which, state, networks = choose(raw, {"student": CONTAINERS}, options.which)
    inside = any(name.startswith("visual.") for name in state)
    # beside a visual tower, CLIP's bare names are the text tower's
    extras = EXTRAS if inside else EXTRAS[:3]
    names = [(p.replace(V, r"visual\."), into) for p, into in NAMES] if inside else NAMES
    tensors, groups = rename(state, names, extras)
    tensors = clip.unsqueezed(tensors)
    token = isinstance(tensors.get("cls_token"), Tensor)
    family = FAMILY if token else replace(FAMILY, pool="avg")
    spec, asked = infer_spec(tensors, family, options.num_heads)
    notes = ("rotary positions: places 1, 2, 3 ... at any size, as the authors' code has them",)
    if "attentional pooling" in groups:
        notes += ("the attentional pooling head is left out: features are the tokens",)
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, CONTAINERS),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )
