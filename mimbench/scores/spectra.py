"""Label-free measures of embeddings, in the form of the papers that defined them.

Packages under the same names differ by factors of three to four (centred or not, eigenvalues or their
squares): compare these values with each other only, and with none from elsewhere. RankMe compares
checkpoints of one method; LiDAR and the intrinsic dimension also depend on how many samples there are.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.system.errors import UserError

RANKME_EPS = 1e-7
LIDAR_DELTA, LIDAR_EPS = 1e-4, 1e-8
ALPHA_RANKS = (11, 100)
"""First and last eigenvalue of the fit, counted from 1."""
TWONN_DISCARD = 0.1
PIECE = 1024
"""Rows whose distances to all others are held at a time."""

Array = NDArray[np.float64]


def rankme(embeddings: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the singular values of the uncentred matrix.

    Args:
        embeddings: (n, d)
    """
    gram = _gram(embeddings)
    singular = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    # the smallest of these lose digits in the Gram matrix, and carry no weight in the entropy
    if singular.sum() == 0:
        raise UserError("every embedding is zero: the checkpoint gives no features")
    return _effective(singular / singular.sum() + RANKME_EPS)


def _gram(embeddings: Tensor) -> Array:
    x = embeddings.double()
    wide = x.shape[1] > x.shape[0]
    return ((x @ x.T) if wide else (x.T @ x)).cpu().numpy()


def _effective(share: Array) -> float:
    return float(np.exp(-(share * np.log(share)).sum()))


def lidar(views: Tensor) -> float:
    """Return LiDAR: the effective rank of the linear discriminant of objects against their views.

    Args:
        views: (objects, views of each, d)
    """
    objects, count, width = views.shape
    if objects < 2 or count < 2:
        raise UserError(f"LiDAR of {objects} objects with {count} views; it needs 2 of each")
    x = views.double()
    means = x.mean(dim=1)
    between = means - means.mean(dim=0)
    within = (x - means[:, None]).flatten(0, 1)
    covariance_between = between.T @ between / (objects - 1)
    covariance_within = within.T @ within / (objects * (count - 1))
    covariance_within += LIDAR_DELTA * torch.eye(width, dtype=x.dtype, device=x.device)
    values, axes = np.linalg.eigh(covariance_within.cpu().numpy())
    whitening = axes / np.sqrt(values) @ axes.T
    found = np.linalg.eigvalsh(whitening @ covariance_between.cpu().numpy() @ whitening)
    found = np.clip(found, 0, None)
    if found.sum() == 0:
        raise UserError("all objects have the same features: LiDAR is not defined")
    return _effective(found / found.sum() + LIDAR_EPS)


@dataclass(frozen=True, kw_only=True)
class Decay:
    """A power law fitted to the eigenvalues of a covariance."""

    alpha: float
    r2: float
    """Share of the variance of ln eigenvalue over the fitted ranks that the law explains."""


def alpha_req(embeddings: Tensor) -> Decay:
    """Return alpha-ReQ: the slope of the covariance's eigenvalues over their ranks, 11 to 100.

    Weighted least squares of ln(eigenvalue) on ln(rank) with weights 1 / rank; near 1 is called good.
    """
    first, last = ALPHA_RANKS
    x = embeddings.double()
    # of few dimensions the last does not vary: a norm over the width takes one away
    last = min(last, x.shape[0], x.shape[1] - 1)
    if last - first < 10:
        raise UserError(
            f"alpha-ReQ fits eigenvalues {first} to {ALPHA_RANKS[1]}; "
            f"{x.shape[0]} embeddings of width {x.shape[1]} have too few"
        )
    x = x - x.mean(dim=0)
    values = np.linalg.eigvalsh((x.T @ x / len(x)).cpu().numpy())[::-1][first - 1 : last]
    if values[-1] <= 0:
        raise UserError("fewer than 100 dimensions vary: alpha-ReQ is not defined")
    ranks = np.arange(first, last + 1, dtype=np.float64)
    t, y, weights = np.log(ranks), np.log(values), 1 / ranks
    t_mean, y_mean = (np.average(v, weights=weights) for v in (t, y))
    slope = (weights * (t - t_mean) * (y - y_mean)).sum() / (weights * (t - t_mean) ** 2).sum()
    rest = y - y_mean - slope * (t - t_mean)
    return Decay(alpha=-float(slope), r2=1 - float((rest**2).sum() / ((y - y.mean()) ** 2).sum()))


def two_nn(embeddings: Tensor) -> float:
    """Return the intrinsic dimension by the ratio of each point's two nearest distances.

    Copies of a point are dropped, then the largest tenth of the ratios.
    """
    x = torch.unique(embeddings.double(), dim=0)
    if len(x) < 3:
        raise UserError(f"{len(x)} different embeddings: the intrinsic dimension needs 3 or more")
    norms = x.square().sum(dim=1)
    ratios = []
    for start in range(0, len(x), PIECE):
        piece = x[start : start + PIECE]
        near = (norms[start : start + PIECE, None] + norms - 2 * piece @ x.T).topk(
            min(8, len(x)), dim=1, largest=False
        )
        # the shortcut above loses digits where points are close: measure the few again
        exact = (piece[:, None] - x[near.indices]).square().sum(dim=2).sqrt()
        exact[near.indices == torch.arange(start, start + len(piece))[:, None].to(x.device)] = 0
        ordered = exact.sort(dim=1).values
        ratios.append(ordered[:, 2] / ordered[:, 1])
    mu = np.sort(torch.cat(ratios).cpu().numpy())
    mu = mu[: int(len(mu) * (1 - TWONN_DISCARD))]
    share = np.arange(1, len(mu) + 1) / len(x)
    steps, heights = np.log(mu), -np.log(1 - share)
    return float((steps * heights).sum() / (steps**2).sum())


def mean_cosine(embeddings: Tensor) -> float:
    """Return the mean cosine between two different embeddings: near 1 is collapse."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    count = len(unit)
    if count < 2:
        raise UserError("the mean cosine needs 2 or more embeddings")
    return float((unit.sum(dim=0).square().sum() - count) / (count * (count - 1)))
