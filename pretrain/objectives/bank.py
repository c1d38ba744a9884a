"""What was predicted about every image before: a map of difficulties each, one byte a place.

A run that remembers needs no teacher: masks follow what the student said the last times it saw the
image. A map has the grid's cells and lies in the image's own coordinates; a crop reads it through its
box and mirror, and writes where patches were hidden. Values are ranks within a crop, so that maps of
different ages compare; they are kept in a file that the system maps into memory, as many bytes an
image as the grid has cells: 196 at 14 x 14, 251 MB for ImageNet-1K.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.system.runtime import all_rows

STEPS = 254
"""Between the smallest rank, 1, and the largest, 255; 0 is a place that nothing is known of."""


class DifficultyBank:
    """The maps of all images; every process holds all of them."""

    def __init__(self, folder: Path, images: int, grid: tuple[int, int], rate: float) -> None:
        """Open an empty bank.

        Args:
            folder: Where its file lies; the file has no name and goes with the process.
            images: Of the data set.
            grid: Rows and columns of a map, and of a crop.
            rate: How far a new rank moves a known one.
        """
        self.grid, self.rate = grid, rate
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the process
        shape = (images, grid[0] * grid[1])
        self.maps = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
        self.pending: list[tuple[Tensor, Tensor]] = []

    def read(self, indices: Tensor, place: Tensor) -> Tensor:
        """Return the rank (b, n) from 0 to 1 of each patch of crops, NaN where nothing is known.

        Args:
            indices: Of the images (b,).
            place: (b, 5): top, left, height and width of each crop as shares; mirrored or not.
        """
        found = self._rows(indices).gather(1, cells(self.grid, place.cpu()))
        ranks = (found.float() - 1) / STEPS
        return ranks.masked_fill(found == 0, torch.nan).to(place.device)

    def note(self, indices: Tensor, place: Tensor, hidden: Tensor, difficulty: Tensor) -> None:
        """Take predictions of the step that is being taken; `settle` enters them.

        Args:
            indices: Of the images (b,).
            place: Of their crops (b, 5).
            hidden: Patches (k x b, m): all images under one mask, then all under the next.
            difficulty: What was predicted for them (k x b, m).
        """
        b, m = len(indices), hidden.shape[1]
        ranks = difficulty.detach().float().cpu().argsort(dim=1, stable=True).argsort(1)
        ranks = ranks.float() / max(1, m - 1) if m > 1 else torch.full_like(ranks, 0.5).float()
        own = cells(self.grid, place.cpu())
        own = own.repeat(len(hidden) // b, 1).gather(1, hidden.cpu())
        own, ranks = (x.view(-1, b, m).transpose(0, 1).flatten(1) for x in (own, ranks))
        total = torch.zeros(b, self.maps.shape[1]).scatter_add_(1, own, ranks)
        often = torch.zeros_like(total).scatter_add_(1, own, torch.ones_like(ranks))
        before = self._rows(indices)
        fresh = total / often.clamp(min=1)
        old = (before.float() - 1) / STEPS
        value = torch.where(before == 0, fresh, old + self.rate * (fresh - old))
        rows = torch.where(often > 0, 1 + (value * STEPS).round(), before.float())
        self.pending.append((indices.cpu(), rows.to(torch.uint8)))

    def settle(self, device: torch.device) -> None:
        """Enter what all processes noted at this step, in the order of the effective batch."""
        if not self.pending:
            return
        indices, rows = (torch.cat(parts).to(device) for parts in zip(*self.pending, strict=True))
        self.pending.clear()
        self.maps[all_rows(indices).cpu().numpy()] = all_rows(rows).cpu().numpy()

    def state(self) -> Tensor:
        """Return all maps."""
        return torch.from_numpy(np.asarray(self.maps))

    def restore(self, state: Tensor) -> None:
        """Take all maps up."""
        if tuple(state.shape) != self.maps.shape:
            raise UserError(
                f"the state's bank of difficulties is for {state.shape[0]} images of {state.shape[1]} "
                f"places, this run has {self.maps.shape[0]} of {self.maps.shape[1]}: give the run the "
                "data that it began with, or start afresh with --fresh"
            )
        self.maps[:] = state.numpy()

    def _rows(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self.maps[indices.cpu().numpy()])


def cells(grid: tuple[int, int], place: Tensor) -> Tensor:
    """Return the cell (b, n) of an image's map in which each patch of a crop has its middle."""
    rows, columns = grid
    y, x = ((torch.arange(side) + 0.5).view(1, -1) / side for side in grid)
    top, left, height, width, mirrored = place.float().unsqueeze(2).unbind(1)
    x = torch.where(mirrored > 0, 1 - x, x)
    row = ((top + height * y) * rows).floor().clamp(0, rows - 1).long()
    column = ((left + width * x) * columns).floor().clamp(0, columns - 1).long()
    return (row.unsqueeze(2) * columns + column.unsqueeze(1)).flatten(1)
