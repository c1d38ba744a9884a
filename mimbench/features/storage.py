"""What storing features in half precision does to top-1, on the images whose exact features are kept."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.features.bank import FeatureBank
from mimbench.scores.metrics import top_percent

logger = logging.getLogger(__name__)

Rank = Callable[[Tensor, NDArray[np.int64], Tensor, int], Tensor]
"""Train features, their labels, val features, number of classes -> five best classes (n, 5)."""


def storage_effect(train: FeatureBank, val: FeatureBank, choice: str, rank: Rank) -> dict[str, Any]:
    """Return top-1 with exact and with stored features of the same images, and the difference."""
    (at, bank), (rows, queries) = (b.exact(choice) for b in (train, val))
    labels, classes = train.images.labels[at], len(train.images.classes)
    truth = torch.from_numpy(val.images.labels[rows])
    storage = train.spec.storage
    exact = top_percent(rank(bank, labels, queries, classes), truth, 1)
    stored = top_percent(
        rank(train.load(choice)[at], labels, val.load(choice)[rows], classes), truth, 1
    )
    return describe(storage, exact, stored) | {"bank_images": len(at), "images": len(rows)}


def describe(storage: str, exact: float, stored: float) -> dict[str, Any]:
    """Return what a result says about storage, and log it."""
    logger.info("storing features in %s moves top-1 by %+.2f points", storage, stored - exact)
    return {"top1_fp32": exact, f"top1_{storage}": stored, "difference": stored - exact}
