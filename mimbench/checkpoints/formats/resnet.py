"""ResNets: torchvision's and timm's names, bare or inside a self-supervised method (MoCo, SparK)."""

from typing import Any

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
from mimbench.checkpoints.reading.plain import EMA
from mimbench.checkpoints.reading.staged import PREFIXES, depths_of, under
from mimbench.networks.levels import LevelSpec
from mimbench.system.errors import UserError

NAME = "resnet"

ANCHOR = "layer1.0.conv1.weight"
EXTRAS = [
    (r".*num_batches_tracked", "batch norm's step counts"),
    (r"(fc|head|classifier)\..*", "classifier head"),
]
SIZES: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
    (True, (3, 24, 36, 3)): 200,
}


def claims(raw: Raw) -> bool:
    """Return whether the first stage of a ResNet is there."""
    return any(f"{prefix}{ANCHOR}" in raw.names for prefix in PREFIXES)


def convert(raw: Raw, options: Options) -> Converted:
    """Return the network with its batch norms' statistics."""
    offers = {"ema": EMA, "teacher": ("teacher",), "student": ("student", *PLAIN)}
    which, state, networks = choose(raw, offers, options.which)
    inner, beside = under(state, ANCHOR)
    tensors, groups = rename(inner, (), EXTRAS)
    return Converted(
        spec=_spec(tensors),
        tensors=tensors,
        extras=beside | groups | container_extras(raw, [*EMA, *PLAIN, "student", "teacher"]),
        which=which,
        networks=networks,
    )


def _spec(tensors: Tensors) -> LevelSpec:
    depths = depths_of(list(tensors), r"layer(\d+)\.(\d+)\.")
    deep = "layer1.0.conv3.weight" in tensors
    if len(depths) != 4 or "conv1.weight" not in tensors:
        raise UserError(f"a ResNet has four stages and conv1, this file {len(depths)} stages")
    size = SIZES.get((deep, depths))
    widths = [int(tensors[f"layer{s}.0.conv1.weight"].shape[0]) for s in range(1, 5)]
    options: dict[str, Any] = {"layers": list(depths), "channels": widths}
    return LevelSpec(
        architecture="resnet50" if deep else "resnet18",
        options=options,
        name=f"ResNet-{size or 'x'.join(map(str, depths))}",
    )
