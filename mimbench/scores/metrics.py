"""Classification scores: top-k accuracy from ranked classes, per-image outcomes, shared by all tasks."""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.system.files import atomic_path

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


def write_outcomes(
    out: Path,
    images: ImageList,
    top5: NDArray[np.int64],
    *,
    draws: NDArray[np.int64] | None = None,
) -> None:
    """Write what was predicted for each image: `outcomes.npz` with images, labels, top5.

    Where the metric is a mean over draws of the training images, `draws` (draws, n) is the best class
    in each of them, and `top5` that of the first.
    """
    if top5.shape != (len(images), 5):
        raise ValueError(f"predictions of shape {top5.shape} for {len(images)} images")
    arrays = {"images": np.array(images.names, dtype=np.str_), "labels": images.labels}
    arrays |= {"top5": top5} if draws is None else {"top5": top5, "draws": draws}
    with atomic_path(out / "outcomes.npz") as part, part.open("wb") as file:
        np.savez(file, **arrays)
