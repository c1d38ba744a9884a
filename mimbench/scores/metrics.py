"""Classification scores: top-k accuracy from ranked classes, shared by all tasks."""

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def rank_classes(scores: Tensor, count: int = 5) -> Tensor:
    """Return the `count` best classes of each row (n, count), best first; a tie goes to the lower class.

    Rows shorter than `count` are padded with -1, which is no class.
    """
    classes = scores.shape[1]
    keys = rank_keys(scores, torch.arange(classes, device=scores.device), classes)
    best = keys.topk(min(count, classes), dim=1).indices
    return torch.nn.functional.pad(best, (0, count - best.shape[1]), value=-1)


def rank_keys(scores: Tensor, ids: Tensor, classes: int) -> Tensor:
    """Return int64 keys in the order of scores, and of equal scores the lower class first."""
    bits = scores.float().contiguous().view(torch.int32).to(torch.int64)
    # floats in the order of integers: of negative ones, all bits but the sign are turned round
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (bits << 32) + (classes - 1 - ids)


def top_percent(ranked: Tensor, labels: Tensor, k: int) -> float:
    """Return the percentage of rows whose label is among the first `k` ranked classes."""
    if len(ranked) != len(labels):
        raise ValueError(f"{len(ranked)} predictions for {len(labels)} labels")
    hits = (ranked[:, :k] == labels[:, None]).any(dim=1)
    return 100.0 * int(hits.sum()) / max(1, len(labels))
