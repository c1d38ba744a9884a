"""DINOv2 files, with and without registers: published backbones and training dumps."""

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
from mimbench.checkpoints.reading.plain import plain_kind
from mimbench.system.errors import UserError

NAME = "dinov2"

OFFERS = {"teacher": ("teacher", *PLAIN), "student": ("student",)}
NAMES = [
    # training dumps keep blocks in chunks: the second index is the absolute one
    (r"(?:backbone\.)?blocks\.\d+\.(\d+)\.mlp\.w12\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"(?:backbone\.)?blocks\.\d+\.(\d+)\.mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"(?:backbone\.)?blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(?:backbone\.)?blocks\.(\d+)\.mlp\.w12\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"(?:backbone\.)?blocks\.(\d+)\.mlp\.w3\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"(?:backbone\.)?register_tokens", "reg_token"),
    (r"backbone\.(.*)", r"\1"),
]
EXTRAS = [
    (r"(backbone\.)?mask_token", "mask token"),
    (r"(dino_head|ibot_head)\..*", "projection head"),
]


def claims(raw: Raw) -> bool:
    """Return whether LayerScale and DINOv2's own tokens, chunks or containers are there."""
    if raw.has(r".*storage_tokens|.*rope.*|.*\.bias_mask"):
        return False
    scaled = raw.has(r"(backbone\.)?blocks\.(\d+\.)?0\.ls1\.gamma")
    # other libraries put timm's networks under `backbone.` too: a dump says who it is
    own = "teacher" in raw.networks or raw.has(r"(dino_head|ibot_head)\..*")
    dump = raw.has(r"(backbone\.)?blocks\.\d+\.\d+\..*") or (
        own and raw.has(r"backbone\.blocks\..*")
    )
    return plain_kind(raw) == "dinov2" or (scaled and dump)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the teacher (the only network of published files)."""
    which, state, networks = choose(raw, OFFERS, options.which)
    tensors, groups = rename(state, NAMES, EXTRAS)
    notes: tuple[str, ...] = ()
    rule = "bicubic-offset"
    if "reg_token" in tensors:
        tensors, notes, rule = split_positions(tensors), (REGISTERS_NOTE,), "bicubic-antialias"
    spec, asked = infer_spec(tensors, Family(position_rule=rule), options.num_heads)
    used = [container for containers in OFFERS.values() for container in containers]
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, used),
        notes=notes,
        which=which,
        networks=networks,
        heads_asked=asked,
    )


REGISTERS_NOTE = "the class token's position row was added to the class token (exact)"


def split_positions(tensors: Tensors) -> Tensors:
    """Return the tensors with the table's class row added to the class token, as timm has it."""
    out = dict(tensors)
    if {"pos_embed", "cls_token"} <= out.keys():
        table = out["pos_embed"].float()
        if table.dim() != 3 or out["cls_token"].shape != table[:, :1].shape:
            raise UserError(
                f"cls_token {tuple(out['cls_token'].shape)} does not fit the table "
                f"pos_embed {tuple(table.shape)}"
            )
        out["cls_token"] = out["cls_token"].float() + table[:, :1]
        out["pos_embed"] = table[:, 1:]
    return out
