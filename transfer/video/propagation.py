"""Label propagation: each patch takes the labels of its most similar patches in earlier frames.

The rule of DINO's script, after Jabri et al. 2020. Of the first frame and the last few, only patches
within a square window count; the k largest affinities over all of these frames together are kept.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.system.memory import Halving


@dataclass(frozen=True, kw_only=True)
class PropagationRule:
    """How labels are carried from frame to frame."""

    previous: int = 7
    """Frames before the present one that give labels, beside the first."""
    neighbours: int = 5
    """Affinities that are kept for each patch, over all of these frames."""
    radius: int = 12
    """Half side of the window, in patches whatever their size."""
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.previous < 0 or self.neighbours < 1 or self.radius < 0 or self.temperature <= 0:
            raise ValueError(
                f"previous {self.previous}, neighbours {self.neighbours}, radius {self.radius} and "
                f"temperature {self.temperature} cannot be propagated with"
            )


def window(grid: tuple[int, int], radius: int, device: torch.device | None = None) -> Tensor:
    """Return which patches may give labels to which (n, n): those within a square of 2 radius + 1."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    near_rows = (rows[:, None] - rows[None]).abs() <= radius
    near_columns = (columns[:, None] - columns[None]).abs() <= radius
    joint = near_rows[:, None, :, None] & near_columns[None, :, None, :]
    return joint.flatten(2).flatten(0, 1)


def carry(
    target: Tensor, sources: Tensor, labels: Tensor, near: Tensor, rule: PropagationRule
) -> Tensor:
    """Return the labels (c, n') of target patches.

    Args:
        target: (n', d) of unit length: patches of the present frame, or some of them.
        sources: (f, n, d) of unit length, of the frames that give labels.
        labels: (c, f, n) of these frames.
        near: (n', n) which patches may give labels.
        rule: How.
    """
    affinity = (torch.einsum("fnd,md->fnm", sources, target) / rule.temperature).exp()
    affinity = (affinity * near.T).flatten(0, 1)
    kept = min(rule.neighbours, len(affinity))
    # whatever equals the k-th largest stays, as in the original
    least = affinity.topk(kept, dim=0).values[-1]
    affinity = torch.where(affinity < least, 0, affinity)
    affinity = affinity / affinity.sum(dim=0)
    return labels.flatten(1) @ affinity


def propagate(
    features: Iterable[Tensor],
    first: Tensor,
    grid: tuple[int, int],
    rule: PropagationRule,
    room: Halving | None = None,
) -> Iterator[Tensor]:
    """Yield the soft labels (c, rows, columns) of each frame after the first.

    Args:
        features: (n, d) of unit length for every frame, the first one included.
        first: (c, rows, columns) labels of the first frame, background included.
        grid: Rows and columns.
        rule: How.
        room: Patches that are answered at a time; out of memory halves it.
    """
    frames = iter(features)
    start = next(frames)
    near = window(grid, rule.radius, start.device)
    room = room or Halving(size=len(start))
    earlier: deque[tuple[Tensor, Tensor]] = deque(maxlen=rule.previous)
    for target in frames:
        sources = torch.stack([start, *(f for f, _ in earlier)])
        labels = torch.stack([first, *(s for _, s in earlier)], dim=1).flatten(2)
        parts: list[Tensor] = []
        done = 0
        while done < len(target):

            def piece(size: int, done: int = done, target: Tensor = target) -> Tensor:
                some = slice(done, done + size)
                return carry(target[some], sources, labels, near[some], rule)  # noqa: B023

            parts.append(room.attempt(piece))
            done += parts[-1].shape[1]
        soft = torch.cat(parts, dim=1).unflatten(1, grid)
        earlier.append((target, soft))
        yield soft


def decide(soft: Tensor, patch: int) -> Tensor:
    """Return the object at each pixel (H, W) from soft labels (c, rows, columns).

    They are enlarged bilinearly, and each object's map is stretched to reach from 0 to 1.
    """
    large = F.interpolate(
        soft[None], scale_factor=patch, mode="bilinear", align_corners=False,
        recompute_scale_factor=False,
    )[0]  # fmt: skip
    lowest = large.amin(dim=(1, 2), keepdim=True)
    highest = large.amax(dim=(1, 2), keepdim=True)
    stretched = (large - lowest) / (highest - lowest)
    # a map without any label stays as it is, and a flat one divides nothing by nothing: it is 0
    return torch.where(highest > 0, stretched.nan_to_num(0.0), large).argmax(dim=0)
