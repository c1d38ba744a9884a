"""detectron2 ViTDet dictionaries: the backbone of a detector, without class token and norm."""

import torch
from torch import Tensor

from mimbench.checkpoints.reading.architecture import Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    PLAIN,
    Converted,
    Options,
    Raw,
    Tensors,
    choose,
    container_extras,
    rename,
)
from mimbench.system.errors import UserError

NAME = "vitdet"

NAMES = [(r"(?:backbone\.)?net\.(.*)", r"\1")]
EXTRAS = [
    (r"(?:backbone\.)?simfp_.*", "feature pyramid"),
    (r"(proposal_generator|roi_heads)\..*", "detector"),
    (r"pixel_(mean|std)", "image statistics"),
]


def claims(raw: Raw) -> bool:
    """Return whether blocks stand under detectron2's name for a plain backbone."""
    whole = raw.has(r"(backbone\.)?net\.(cls_token|norm\.weight)")  # somebody's own `net.`
    return raw.has(r"(backbone\.)?net\.blocks\.0\.norm1\.weight") and not whole


def convert(raw: Raw, options: Options) -> Converted:
    """Return the encoder, if no trained relative positions or windows change its function."""
    which, state, networks = choose(raw, {"student": PLAIN}, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    tensors, relative = _without_relative(tensors)
    if relative:
        groups["relative positions (all zero)"] = relative
    notes = ("no class token and no final norm in detectron2's layout: patch features only",)
    table = tensors.get("pos_embed")
    if table is not None and table.dim() == 3 and "cls_token" not in tensors:
        # detectron2 keeps the pre-trained class row and never uses it
        tensors["pos_embed"] = table[:, 1:] if _has_class_row(table) else table
    spec, asked = infer_spec(
        tensors, Family(pool="avg", requires=("patch_embed.proj.bias",)), options.num_heads
    )
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, PLAIN),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )


def _has_class_row(table: Tensor) -> bool:
    return round((table.shape[1] - 1) ** 0.5) ** 2 == table.shape[1] - 1


def _without_relative(tensors: Tensors) -> tuple[Tensors, int]:
    names = [n for n in tensors if n.endswith((".attn.rel_pos_h", ".attn.rel_pos_w"))]
    trained = [n for n in names if tensors[n].is_meta or bool(torch.any(tensors[n] != 0))]
    if trained:
        raise UserError(
            f"{len(trained)} trained relative position tables ({trained[0]}, ...): this detector's "
            "backbone is no plain ViT any more, and dropping them would change its features; "
            "give the checkpoint that the detector started from"
        )
    return {n: t for n, t in tensors.items() if n not in names}, len(names)
