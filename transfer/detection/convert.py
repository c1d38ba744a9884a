"""Which patch size a detector runs at; the name map itself is the library's, which export shares."""

from collections.abc import Mapping
from types import MappingProxyType

from mimbench.checkpoints.vitdet import VitDetTensors, to_vitdet
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec, VitWeights

RESAMPLED = {14: 16}
"""Patch sizes whose kernel may be resampled; the pyramid needs a stride that is a power of two."""


def convert(
    weights: VitWeights,
    *,
    patch_size: int | None,
    side: int,
    windows: Mapping[int, int] = MappingProxyType({}),
    prefix: bool = False,
) -> VitDetTensors:
    """Return the weights as a detector's trunk holds them.

    Args:
        weights: Canonical weights.
        patch_size: The patch size to run at; None for the checkpoint's own.
        side: Patches per side of the images that the detector sees.
        windows: Window of each block that has one; the others are global.
        prefix: Keep class token and registers.
    """
    target = target_patch(weights.spec, patch_size)
    return to_vitdet(weights, patch_size=target, side=side, windows=windows, prefix=prefix)


def target_patch(spec: VitSpec, wanted: int | None) -> int:
    """Return the patch size to run at, or say why the wanted one is out of reach."""
    own = spec.patch_size
    if wanted is None:
        if own & (own - 1):
            raise UserError(
                f"patch_size is null (the checkpoint's own), but patches of {own} give no pyramid "
                "of strides that double from a power of two; use patch_size: 16"
            )
        return own
    if wanted not in (own, RESAMPLED.get(own)):
        raise UserError(
            f"the recipe runs at patch_size {wanted} and the checkpoint has patches of {own}; "
            f"only a kernel of 14 is resampled (to 16); use patch_size: null to run at {own}"
        )
    return wanted
