"""What the layouts of networks with levels share: a prefix to strip, stages and blocks to count."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mimbench.checkpoints.reading.layout import strip_prefix
from mimbench.system.errors import UserError

PREFIXES = ("", "encoder.", "encoder_q.", "sparse_encoder.sp_cnn.", "visual.trunk.")
"""What files put before the names of the network that is evaluated."""


def prefix_of(state: Mapping[str, Any], anchor: str) -> str | None:
    """Return the prefix under which a tensor of this name stands, if it does."""
    return next((prefix for prefix in PREFIXES if f"{prefix}{anchor}" in state), None)


def under(state: Mapping[str, Any], anchor: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the network that holds the anchor, without its prefix, and what stands beside it."""
    prefix = prefix_of(state, anchor)
    if prefix is None:
        raise UserError(f"missing {anchor}")
    if not prefix:
        return dict(state), {}
    inner = strip_prefix(state, prefix)
    groups: dict[str, int] = {}
    for name in state:
        if not name.startswith(prefix):
            group = name.split(".")[0].replace("_", " ")
            groups[group] = groups.get(group, 0) + 1
    return inner, groups


def depths_of(names: Sequence[str], pattern: str) -> tuple[int, ...]:
    """Return the number of blocks of each stage.

    Args:
        names: Every tensor's name.
        pattern: A block's name, with a group for the stage and one for the block.
    """
    found = [m for name in names if (m := re.match(pattern, name))]
    blocks = {(int(m.group(1)), int(m.group(2))) for m in found}
    stages = sorted({stage for stage, _ in blocks})
    first = stages[0] if stages else 0
    if not stages or stages != list(range(first, first + len(stages))):
        raise UserError(f"stages {stages} do not follow one another")
    return tuple(sum(stage == s for s, _ in blocks) for stage in stages)
