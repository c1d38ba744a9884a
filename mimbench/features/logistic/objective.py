"""The loss of multinomial logistic regression along principal axes, for several penalties at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

LOGIT_BYTES = 96 * 2**20
"""Logits of this many bytes are held at a time."""
ROTATE_UP_TO = 4096
"""Wider features are only scaled: their principal axes would cost more than they save."""
FLOOR = 1e-7
"""Smallest variance of an axis, relative to the largest: below is rounding."""


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Centred, rotated features, and the way back."""

    features: Tensor
    """(n, d), mean 0 and uncorrelated"""
    mean: Tensor
    rotation: Tensor | None
    variance: Tensor


def principal_axes(features: Tensor) -> Axes:
    """Return the features along their principal axes (only centred if they are very wide)."""
    mean = features.mean(dim=0)
    centred = features - mean
    if features.shape[1] > ROTATE_UP_TO:
        return Axes(features=centred, mean=mean, rotation=None, variance=centred.var(dim=0))
    covariance = (centred.T @ centred).double() / len(features)
    variance, rotation = torch.linalg.eigh(covariance)
    rotation = rotation.to(features.dtype)
    variance = variance.clamp(min=0).to(features.dtype)
    return Axes(features=centred @ rotation, mean=mean, rotation=rotation, variance=variance)


class Objective:
    """Loss and gradient of several problems in scaled coordinates (g, d + 1, classes)."""

    def __init__(self, axes: Axes, labels: Tensor, classes: int, penalty: Tensor) -> None:
        self.axes, self.labels, self.classes = axes, labels, classes
        self.penalty = penalty
        floor = axes.variance.max() * FLOOR
        curvature = axes.variance.clamp(min=floor) / classes
        scale = (curvature[None] + penalty[:, None]).sqrt()
        # the intercept sees a constant feature of 1, and no penalty
        last = torch.full_like(scale[:, :1], classes**-0.5)
        self.scale = torch.cat([scale, last], dim=1).unsqueeze(-1)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the problems."""
        self.penalty, self.scale = self.penalty[rows], self.scale[rows]

    def __call__(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (g) and gradients (g, d + 1, classes) of the problems at `rows`."""
        scale, penalty = self.scale[rows], self.penalty[rows]
        plain = points / scale
        weight, bias = plain[:, :-1], plain[:, -1]
        count = len(points)
        flat = weight.permute(1, 0, 2).reshape(weight.shape[1], -1)
        loss = torch.zeros(count, dtype=torch.float64, device=points.device)
        slope = torch.zeros_like(flat)
        slope_bias = torch.zeros_like(bias)
        features, total = self.axes.features, len(self.labels)
        size = max(1, LOGIT_BYTES // (4 * flat.shape[1]))
        for start in range(0, total, size):
            x, y = features[start : start + size], self.labels[start : start + size]
            logits = torch.addmm(bias.reshape(1, -1), x, flat).view(len(x), count, self.classes)
            logits -= logits.amax(dim=2, keepdim=True)
            at_label = logits[torch.arange(len(x), device=x.device), :, y].sum(dim=0)
            chance = logits.exp_()
            norm = chance.sum(dim=2, keepdim=True)
            loss += norm.log().sum(dim=(0, 2), dtype=torch.float64) - at_label
            chance /= norm
            chance[torch.arange(len(x), device=x.device), :, y] -= 1
            slope.addmm_(x.T, chance.view(len(x), -1))
            slope_bias += chance.sum(dim=0)
        decay = penalty[:, None, None] * weight
        gradient = slope.view(-1, count, self.classes).permute(1, 0, 2) / total + decay
        full = torch.cat([gradient, (slope_bias / total).unsqueeze(1)], dim=1) / scale
        loss = loss / total + 0.5 * (decay * weight).sum(dim=(1, 2), dtype=torch.float64)
        return loss, full
