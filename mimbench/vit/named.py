"""The architecture that a model's name stands for: `B/16`, or `64x4/16` for one of no published size."""

import re

from mimbench.vit.sizes import SIZES
from mimbench.vit.weights import VitSpec

IMAGE = 224
"""Side of the images of published pretraining."""
PUBLISHED = re.compile(r"([A-Z][a-z]?)/([1-9][0-9]{0,2})", re.ASCII)
PLAIN = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,2})/([1-9][0-9]{0,2})", re.ASCII)
"""Width, depth and patch size, as `model_name` writes them."""


def published_spec(model: str) -> VitSpec | None:
    """Return the architecture of a published size such as `B/16`, None for another."""
    found = PUBLISHED.fullmatch(model)
    size = next((s for s in SIZES.values() if found and s.letter == found[1]), None)
    if found is None or size is None:
        return None
    return _spec(size.embed_dim, size.depth, size.num_heads, int(found[2]))


def spec_named(model: str) -> VitSpec | None:
    """Return what a plain ViT's name says of it; None for another network's.

    The heads of no published size are not in its name. It gets one: no recipe depends on them.
    """
    if found := PLAIN.fullmatch(model):
        width, depth, patch = map(int, found.groups())
        return _spec(width, depth, 1, patch)
    return published_spec(model)


def _spec(width: int, depth: int, heads: int, patch: int) -> VitSpec:
    side = max(IMAGE // patch, 1)
    return VitSpec(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=4 * width,
        patch_size=patch,
        grid=(side, side),
    )
