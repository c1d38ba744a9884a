"""What masks are like: how much, where, how clumped, over which objects, on how hard patches."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.data.lists import SUFFIXES
from mimbench.system.errors import UserError
from pretrain.viewing.annotations import is_label_map
from pretrain.viewing.mask_shapes import Shape, shape_of


@dataclass(frozen=True, kw_only=True)
class StrategyStatistics:
    """One strategy's statistics over a set of images."""

    label: str
    ratio: float
    """Share of patches hidden."""
    spatial_entropy: float
    """Entropy of where masks lie over the set, over its maximum: 1 is everywhere alike."""
    clumping: float
    """Share of a hidden patch's neighbours that are hidden, over the ratio: 1 is no clumping."""
    objects: float | None
    """Share of annotated things hidden, over the ratio: above 1 they are sought out."""
    rank_correlation: float | None
    """Spearman's, between how often a patch is hidden and its true reconstruction loss."""
    where: Tensor
    """(rows, columns): how often each place is hidden."""
    shape: Shape


def describe(
    label: str,
    draws: Tensor,
    grid: tuple[int, int],
    *,
    objects: Tensor | None,
    loss: Tensor | None,
    lift: float | None = None,
) -> StrategyStatistics:
    """Return the statistics of masks.

    Args:
        label: What to call them.
        draws: (draws, b, n) masks, several of each image.
        grid: Rows and columns.
        objects: (b, n) how much of what is annotated lies on each patch; NaN rows have nothing.
        loss: (b, n) true reconstruction loss.
        lift: The loss under these masks, over that under random ones.
    """
    often = draws.float().mean(0)
    where, ratio = often.mean(0), often.mean().item()
    share = where / where.sum()
    entropy = -(share * share.clamp(min=1e-12).log()).sum().item() / math.log(len(share))
    over = None
    if objects is not None:
        known = objects.isfinite().all(1) & (objects.sum(1) > 0)
        if known.any():
            area = objects[known]
            over = ((often[known] * area).sum() / area.sum()).item() / ratio
    return StrategyStatistics(
        label=label,
        ratio=ratio,
        spatial_entropy=entropy,
        clumping=_clumping(draws.flatten(0, 1).float().unflatten(1, grid)) / ratio,
        objects=over,
        rank_correlation=None if loss is None else spearman(often, loss),
        where=where.unflatten(0, grid),
        shape=shape_of(draws, grid, objects=objects, lift=lift),
    )


def _clumping(masks: Tensor) -> float:
    kernel = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    x = masks.unsqueeze(1)
    hidden = F.conv2d(x, kernel, padding=1)
    neighbours = F.conv2d(torch.ones_like(x), kernel, padding=1)
    return ((hidden * x).sum() / (neighbours * x).sum()).item()


def spearman(one: Tensor, other: Tensor) -> float:
    """Return the mean over rows of Spearman's rank correlation, ties sharing their mean rank."""
    ranks = [_ranks(values) for values in (one, other)]
    a, b = (r - r.mean(1, keepdim=True) for r in ranks)
    scale = a.norm(dim=1) * b.norm(dim=1)
    # a row without any order has no correlation
    known = scale > 0
    return ((a * b).sum(1)[known] / scale[known]).mean().item() if known.any() else 0.0


def _ranks(values: Tensor) -> Tensor:
    smaller = (values.unsqueeze(2) > values.unsqueeze(1)).sum(2)
    equal = (values.unsqueeze(2) == values.unsqueeze(1)).sum(2)
    return smaller + (equal - 1) / 2


def find_images(root: Path, limit: int) -> list[Path]:
    """Return up to `limit` images below a folder, spread evenly over their sorted names."""
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = [path for path in found if not is_label_map(path, root)]
    if not found:
        raise UserError(f"no images below {root}")
    step = max(1, len(found) // limit)
    return found[::step][:limit]
