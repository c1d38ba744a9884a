"""The architecture behind a published name such as `B/16`."""

from mimbench.vit.sizes import SIZES
from mimbench.vit.weights import VitSpec

IMAGE = 224
"""Side of the images of published pretraining."""


def published_spec(model: str) -> VitSpec | None:
    """Return the architecture of a published size such as `B/16`, None for another."""
    letter, _, patch = model.partition("/")
    size = next((s for s in SIZES.values() if s.letter == letter), None)
    if size is None or not patch.isdigit():
        return None
    side = IMAGE // int(patch)
    return VitSpec(
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        mlp_dim=4 * size.embed_dim,
        patch_size=int(patch),
        grid=(side, side),
    )
