"""What the masks of an epoch were like: summed on the device as they are drawn, kept with every state.

A reader of a run's saved states can so watch a curriculum: where masks lie, how clumped they are,
and how many of the patches that were said to be hardest they hide.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mimbench.system.runtime import all_reduce_sum
from pretrain.masks import MaskInput, hide_largest


class MaskRecord:
    """Sums over the masks of all processes since the epoch began."""

    def __init__(self, grid: tuple[int, int], device: torch.device) -> None:
        self.grid = grid
        self.where = torch.zeros(grid[0] * grid[1], dtype=torch.float64, device=device)
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        """Masks; neighbours of hidden patches that are hidden, and all; masks with a difficulty; the
        share of their hardest patches that is hidden, summed."""
        self.pending = torch.zeros(
            len(self.where) + len(self.sums), dtype=torch.float64, device=device
        )
        """The same for this process's share of the step, places first."""

    @torch.no_grad()
    def add(self, mask: Tensor, inp: MaskInput) -> None:
        """Count masks (b, n) of the step that is being taken."""
        where, sums = self.pending.split((len(self.where), len(self.sums)))
        where += mask.sum(0)
        x = mask.view(-1, *self.grid)
        pairs = (x[:, 1:] & x[:, :-1]).sum() + (x[:, :, 1:] & x[:, :, :-1]).sum()
        # each hidden patch has as many neighbours as the grid gives its place
        ends = self.degrees(mask.device)
        sums[0] += len(mask)
        sums[1] += 2 * pairs
        sums[2] += (mask * ends).sum()
        if inp.difficulty is not None:
            hardest = hide_largest(inp.difficulty.float(), max(1, mask.shape[1] // 4))
            found = (mask & hardest).sum(1) / hardest.sum(1)
            sums[3] += len(mask)
            sums[4] += found.sum()

    def settle(self) -> None:
        """Add the step's masks of all processes to the sums."""
        where, sums = all_reduce_sum(self.pending).split((len(self.where), len(self.sums)))
        self.where += where
        self.sums += sums
        self.pending.zero_()

    def degrees(self, device: torch.device) -> Tensor:
        """Return how many neighbours each place has (n,)."""
        rows, columns = self.grid
        r, c = torch.arange(rows, device=device), torch.arange(columns, device=device)
        tall = (r > 0).long() + (r < rows - 1).long()
        wide = (c > 0).long() + (c < columns - 1).long()
        return (tall.view(-1, 1) + wide).flatten()

    def reset(self) -> None:
        """Begin anew."""
        self.where.zero_()
        self.sums.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"where": self.where, "sums": self.sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take the sums up."""
        self.where.copy_(state["where"])
        self.sums.copy_(state["sums"])

    def summary(self) -> dict[str, Any]:
        """Return the statistics as plain values; empty before the first mask."""
        images, pairs, ends, judged, found = self.sums.tolist()
        if not images:
            return {}
        where = (self.where / images).cpu()
        ratio, share = where.mean().item(), where / where.sum()
        entropy = -(share * share.clamp(min=1e-12).log()).sum().item() / math.log(len(where))
        return {
            "images": int(images),
            "ratio": ratio,
            "spatial_entropy": entropy,
            "clumping": pairs / ends / ratio,
            "hardest_quarter_hidden": found / judged if judged else None,
            "where": [[round(v, 4) for v in row] for row in where.view(self.grid).tolist()],
        }


def summary_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a training state says of its epoch's masks; None for states that say nothing."""
    kept, config = state["learner"].get("masks"), state["config"]
    if kept is None or "encoder" not in config:
        return None
    side = config["data"]["image_size"] // config["encoder"]["patch"]
    record = MaskRecord((side, side), torch.device("cpu"))
    record.restore(kept)
    return record.summary() or None
