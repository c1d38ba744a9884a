"""Does a patch's feature sit on its patch? Marks in a picture must answer where they were made.

A residual stream carries each place straight through, so that a mark in one cell moves that cell's
feature most. Reshapes, prefix cuts, windows put back and crops that went wrong move the answer. On a
copy whose weights are drawn anew (`cooled`) this holds for every sound network, so that a failure is a
fault of the wiring; on trained weights it is only a doubt. It cannot see rows and columns exchanged
inside a position table, nor what happens inside a residual branch alone.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARKS = 16
INSIDE = (-0.30, 0.65)
"""Where the common displacement may lie: kernels of odd size with stride 2 answer low and right."""
NEAR = 0.60
FLAT = (10, 14)
"""Cells of the one map of a flat trunk."""
STRETCH = 0.06
"""Of the step between marks on a flat trunk's map; sound ones stay within 0.01."""
SHARE = 0.8
GAIN = 0.7
CELLS = 8
"""Cells a side of the coarsest grid, at least."""

Maps = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one level said."""

    stride: int
    phase: tuple[float, float]
    """Median displacement of rows and columns, in cells."""
    share: float
    """Of the marks within `NEAR` of the phase."""
    fault: str = ""
    contrast: tuple[tuple[float, ...], ...] = ()
    """Energy of the first mark over the grid, for pictures."""

    @property
    def sound(self) -> bool:
        """The level passes."""
        return not self.fault


@torch.no_grad()
def cooled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy whose weights are drawn so that branches are weaker than the residual stream."""
    module = copy.deepcopy(module).eval()
    draw = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.normal_(0, GAIN / math.sqrt(part.in_features), generator=draw)
        elif isinstance(part, nn.Conv2d):
            _cool_convolution(part, draw)
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.zero_()
            assert part.running_var is not None
            part.running_var.fill_(1.0)
        for name, parameter in part.named_parameters(recurse=False):
            kind = type(part).__name__.lower()
            if "responsenorm" in kind:
                parameter.normal_(0, 0.3, generator=draw)
            elif name == "bias":
                parameter.zero_()
            elif "norm" in kind and name == "weight":
                parameter.fill_(1.0)
            elif name.startswith(("gamma", "gamma_")):
                parameter.fill_(0.5)
    return module


def _cool_convolution(part: nn.Conv2d, draw: torch.Generator) -> None:
    """Draw filters of a fixed norm; those of overlapping kernels peak in their middle."""
    part.weight.normal_(0, 1, generator=draw)
    height, width = part.kernel_size
    if part.kernel_size != part.stride and height * width > 1:
        rows, columns = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
        part.weight.mul_(torch.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.6**2)))
    gain = GAIN * (1.4 if height * width > 1 else 1.0)
    norms = part.weight.flatten(1).norm(dim=1).clamp_min(1e-12)
    part.weight.mul_((gain / norms).view(-1, 1, 1, 1))


def picture_size(strides: Sequence[int]) -> tuple[int, int]:
    """Return a size that is not square: ten by fourteen cells, or eight by ten of the coarsest."""
    coarsest = max(strides)
    rows, columns = FLAT if len(strides) == 1 else (8, 10)
    return rows * coarsest, columns * coarsest


def examine(
    maps: Maps, strides: Sequence[int], *, seed: int = 0, marks: int = MARKS
) -> list[Answer]:
    """Return what every level answers.

    Args:
        maps: From normalised pictures (b, 3, H, W) to one map (b, c, h, w) for each stride.
        strides: Of the maps, finest first.
        seed: Of the pictures.
        marks: Cells that are marked, one after another.
    """
    draw = torch.Generator().manual_seed(seed)
    height, width = picture_size(strides)
    small = torch.randn(1, 3, height // 8, width // 8, generator=draw) * GAIN
    clean = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    return [_level(maps, i, stride, clean, draw, marks) for i, stride in enumerate(strides)]


@torch.no_grad()
def _level(
    maps: Maps, index: int, stride: int, clean: Tensor, draw: torch.Generator, marks: int
) -> Answer:
    grid = (math.ceil(clean.shape[2] / stride), math.ceil(clean.shape[3] / stride))
    base = maps(clean)[index]
    if tuple(base.shape[2:]) != grid:
        return Answer(
            stride=stride,
            phase=(math.nan, math.nan),
            share=0.0,
            fault=f"the map of stride {stride} is {tuple(base.shape[2:])}, expected {grid}",
        )
    places = _places(grid, marks, draw)
    energy = []
    for start in range(0, marks, 8):
        pictures = []
        for row, column in places[start : start + 8].tolist():
            marked = clean[0].clone()
            noise = torch.randn(3, stride, stride, generator=draw)
            at = (
                slice(row * stride, (row + 1) * stride),
                slice(column * stride, (column + 1) * stride),
            )
            marked[:, at[0], at[1]] = noise[:, : marked[:, at[0], at[1]].shape[1]]
            pictures.append(marked)
        found = maps(torch.stack(pictures))[index].double() - base.double()
        energy.append(found.square().sum(dim=1))
    return _judge(torch.cat(energy), places, stride)


def _places(grid: tuple[int, int], marks: int, draw: torch.Generator) -> Tensor:
    """Return (marks, 2): rows evenly, columns a random order of an even spread, off the border."""
    rows = torch.linspace(1, grid[0] - 2, marks).round().long()
    columns = torch.linspace(1, grid[1] - 2, marks).round().long()
    return torch.stack([rows, columns[torch.randperm(marks, generator=draw)]], dim=1)


def _judge(energy: Tensor, places: Tensor, stride: int) -> Answer:
    found = torch.stack([_place(energy, j) for j in range(len(energy))])
    apart = found - places
    phase = apart.median(dim=0).values
    near = ((apart - phase).abs() <= NEAR).all(dim=1).double().mean()
    first = energy[0] / energy[0].max().clamp_min(1e-300)
    sound = bool(((phase >= INSIDE[0]) & (phase <= INSIDE[1])).all()) and float(near) >= SHARE
    if tuple(energy.shape[1:]) == FLAT:
        # a crop by a tenth moves no mark by more than a cell there: it shows in the step alone
        steps = [_slope(places[:, axis].double(), found[:, axis]) for axis in (0, 1)]
        sound &= all(abs(float(step) - 1) <= STRETCH for step in steps)
    return Answer(
        stride=stride,
        phase=(round(float(phase[0]), 2), round(float(phase[1]), 2)),
        share=float(near),
        fault="" if sound else f"stride {stride}: {_diagnosis(found, places.double())}",
        contrast=tuple(tuple(row) for row in first.tolist()),
    )


def _place(energy: Tensor, mark: int) -> Tensor:
    """Return where a mark answers: the centroid around the peak of its contrast with the others."""
    others = (energy.sum(dim=0) - energy[mark]) / max(1, len(energy) - 1)
    contrast = energy[mark] / (others + 1e-3 * energy[mark].max()).clamp_min(1e-300)
    peak = int(contrast.argmax())
    row, column = peak // contrast.shape[1], peak % contrast.shape[1]
    rows = slice(max(0, row - 1), row + 2)
    columns = slice(max(0, column - 1), column + 2)
    patch = contrast[rows, columns] - contrast.median()
    weights = patch.clamp_min(0)
    total = weights.sum().clamp_min(1e-300)
    r = torch.arange(rows.start, rows.start + len(patch), dtype=torch.double)
    c = torch.arange(columns.start, columns.start + patch.shape[1], dtype=torch.double)
    return torch.stack([(weights.sum(1) * r).sum() / total, (weights.sum(0) * c).sum() / total])


def _diagnosis(found: Tensor, places: Tensor) -> str:
    """Return what kind of misplacement explains the answers, if one does."""
    slopes = torch.stack(
        [torch.stack([_slope(places[:, a], found[:, b]) for b in (0, 1)]) for a in (0, 1)]
    )
    straight, crossed = torch.diagonal(slopes), torch.stack([slopes[0, 1], slopes[1, 0]])
    if (crossed.abs() > 0.5).all() and (straight.abs() < 0.5).all():
        return "rows and columns are exchanged (a transposed map)"
    for axis, name in enumerate(("rows", "columns")):
        if straight[axis] < -0.5:
            return f"{name} are mirrored"
    if ((straight - 1).abs() <= STRETCH).all():
        shift = (found - places).median(dim=0).values
        return f"features lie {float(shift[0]):+.2f} rows and {float(shift[1]):+.2f} columns off"
    if (straight > 0.5).all():
        return f"the picture was cropped or stretched: {float(straight.mean()):.2f} cells for each"
    return "features lie nowhere near their patches: a reshape, windows or the batch are wrong"


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Return the median slope over all pairs of points (Theil and Sen)."""
    apart = x[:, None] - x[None]
    pairs = apart != 0
    return ((y[:, None] - y[None])[pairs] / apart[pairs]).median()
