"""Noise of a colour as in ColorMAE: random maps without content, filtered so that holes have a grain.

White noise blurred is red, what the blur takes away is blue, the difference of two blurs is green
and all but that is purple (Hinojosa et al., ECCV 2024). The largest values stay visible. The
published maps are files whose filters' widths were never stated; here the noise is drawn anew for
every image, on a torus, and the default widths are ours.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pretrain.masks import MaskInput, Need, hidden_count, hide_largest

WIDTHS = {"green": (1.0, 2.0), "purple": (1.0, 2.0), "blue": (1.0, None), "red": (2.0, None)}
"""Standard deviations of the Gaussian filters, in patches."""
REACH = 4.0
"""Standard deviations after which a filter is cut off."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """ColorMAE; `green`, a grain between single patches and large cells, did best there."""

    ratio: float = 0.75
    order: Literal["green", "purple", "blue", "red"] = "green"
    width: float | None = None
    """Standard deviation of the (narrower) filter in patches; 1, and 2 for red."""
    wide: float | None = None
    """Of the wider filter of green and purple; 2."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def __post_init__(self) -> None:
        width, wide = self.widths()
        if width <= 0:
            raise ValueError(f"width is {width:g}, expected a number above 0")
        if self.wide is not None and WIDTHS[self.order][1] is None:
            raise ValueError(f"wide is {wide:g}, but {self.order} noise has one filter only")
        if wide is not None and wide <= width:
            raise ValueError(f"wide is {wide:g}, expected more than width, {width:g}")

    def widths(self) -> tuple[float, float | None]:
        """Return the filters' standard deviations."""
        usual, usual_wide = WIDTHS[self.order]
        return (
            usual if self.width is None else self.width,
            usual_wide if self.wide is None else self.wide,
        )

    def count(self, patches: int) -> int:
        """Return the number of hidden patches."""
        return hidden_count(patches, self.ratio)

    def idle(self, inp: MaskInput) -> bool:
        """Return True: nothing is needed."""
        del inp
        return True

    def __call__(self, inp: MaskInput, rng: torch.Generator) -> Tensor:
        """Return the mask."""
        rows, columns = inp.grid
        # on a torus of twice the grid's sides no place of a window is special
        noise = inp.uniform(rng, 2 * rows, 2 * columns)
        window = filtered(noise, self.order, *self.widths())[:, :rows, :columns]
        return hide_largest(-window.flatten(1), inp.wanted(self.count(inp.patches)))


def filtered(noise: Tensor, colour: str, width: float, wide: float | None) -> Tensor:
    """Return noise (b, h, w) of a colour; edges are periodic."""
    narrow = blur(noise, width)
    if colour == "red":
        return narrow
    if colour == "blue" or wide is None:
        return noise - narrow
    band = narrow - blur(noise, wide)
    return band if colour == "green" else noise - band


def blur(maps: Tensor, width: float) -> Tensor:
    """Return maps (b, h, w) under a Gaussian filter with periodic edges."""
    spectrum = torch.fft.rfft2(maps)
    h, w = (transfer(size, width, maps) for size in maps.shape[1:])
    return torch.fft.irfft2(spectrum * h.unsqueeze(1) * w[: spectrum.shape[2]], s=maps.shape[1:])


def transfer(size: int, width: float, like: Tensor) -> Tensor:
    """Return what the filter leaves of each frequency of a circle of `size` places."""
    reach = int(REACH * width + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weights = (-0.5 * (offsets / width).square()).exp()
    kernel = torch.zeros(size, device=like.device, dtype=like.dtype)
    kernel.index_add_(0, offsets % size, (weights / weights.sum()).to(like.dtype))
    return torch.fft.fft(kernel).real
