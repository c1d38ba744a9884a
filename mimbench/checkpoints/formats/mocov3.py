"""MoCo v3 training files: base and momentum encoder of one network."""

from mimbench.checkpoints.reading.architecture import HEADS, Family, infer_spec
from mimbench.checkpoints.reading.layout import (
    Converted,
    Options,
    Raw,
    container_extras,
    rename,
    strip_prefix,
)
from mimbench.system.errors import UserError

NAME = "mocov3"

PREFIXES = {"student": "base_encoder.", "teacher": "momentum_encoder."}
EXTRAS = [(r"head\..*", "projection head")]
FAMILY = Family(heads=HEADS | {384: 12})
"""ViT-S has twelve heads here and six everywhere else: the same shapes, another function."""


def claims(raw: Raw) -> bool:
    """Return whether an encoder stands under MoCo's name."""
    return raw.has(r"base_encoder\..*")


def convert(raw: Raw, options: Options) -> Converted:
    """Return the base encoder ('student'), or the momentum encoder as 'teacher'."""
    state = next(s for s in raw.networks.values() if any(n.startswith("base_encoder.") for n in s))
    present = [w for w, p in PREFIXES.items() if any(n.startswith(p) for n in state)]
    which = options.which or "student"
    if which not in present:
        raise UserError(f"holds no network '{which}'; --which can be {', '.join(present)}")
    own = strip_prefix(state, PREFIXES[which])
    if "patch_embed.proj.0.weight" in own:
        raise UserError("the patch embedding is a stack of convolutions: this is no plain ViT")
    tensors, groups = rename(own, [], EXTRAS)
    groups |= _others(state, which)
    spec, asked = infer_spec(tensors, FAMILY, options.num_heads)
    containers = [key for key, network in raw.networks.items() if network is state]
    several = len(present) > 1
    return Converted(
        spec=spec,
        tensors=tensors,
        extras=groups | container_extras(raw, containers),
        which=which if several else "",
        networks=tuple(present) if several else (),
        heads_asked=asked,
    )


def _others(state: dict[str, object], which: str) -> dict[str, int]:
    """Return the number of tensors outside the chosen encoder, by their first component."""
    known = {"base_encoder": "base encoder", "momentum_encoder": "momentum encoder"}
    known["predictor"] = "predictor"
    counts: dict[str, int] = {}
    for name in state:
        if name.startswith(PREFIXES[which]):
            continue
        group = known.get(name.split(".")[0])
        if group is None:
            raise UserError(f"unexpected {name} beside the encoders")
        counts[group] = counts.get(group, 0) + 1
    return counts
