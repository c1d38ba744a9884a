"""The simple pyramid's levels over patches of one size, and their names."""

from dataclasses import dataclass

from mimbench.system.errors import UserError

FINEST_STRIDE = 4
"""Pyramid levels finer than this are left out; with patches of 16 the published four remain."""
SCALES = (4.0, 2.0, 1.0, 0.5)


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The feature pyramid's levels over patches of one size."""

    scales: tuple[float, ...]
    strides: tuple[int, ...]
    """Of the levels, then of the extra level on top."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return detectron2's names: p and the binary logarithm of the stride."""
        return tuple(f"p{stride.bit_length() - 1}" for stride in self.strides)


def levels(patch_size: int, image_size: int) -> Levels:
    """Return the pyramid for a patch size: levels are named by stride, so the names must follow."""
    scales = tuple(s for s in SCALES if patch_size / s >= FINEST_STRIDE)
    strides = [int(patch_size / s) for s in scales]
    if image_size % strides[-1]:
        raise UserError(
            f"image_size {image_size} is no multiple of {strides[-1]}, the stride of the pyramid's "
            f"coarsest level over patches of {patch_size}"
        )
    return Levels(scales=scales, strides=(*strides, 2 * strides[-1]))
