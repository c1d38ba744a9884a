"""Multinomial logistic regression by L-BFGS, for a whole grid of regularisation at once.

The objective is scikit-learn's: C x (sum of cross-entropies) + |W|^2 / 2, the intercept free; here
divided by C x n. All values of C share each product with the features, and converged ones leave.
Features are centred and rotated to their principal axes, where curvature is nearly diagonal: scaling
each axis by the root of that curvature makes tens of iterations do where hundreds were needed.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

MEMORY = 10
"""Pairs of steps and gradient changes kept."""
LOGIT_BYTES = 96 * 2**20
"""Logits of this many bytes are held at a time."""
ROTATE_UP_TO = 4096
"""Wider features are only scaled: their principal axes would cost more than they save."""
FLOOR = 1e-7
"""Smallest variance of an axis, relative to the largest: below is rounding."""
SUFFICIENT = 1e-4
SHRINKS = 20


@dataclass(frozen=True, kw_only=True)
class Until:
    """When a fit ends."""

    tolerance: float = 1e-6
    """The expected decrease is this fraction of the loss."""
    max_iterations: int = 1000
    """At most so many for each C."""


@dataclass(frozen=True, kw_only=True)
class Solutions:
    """One classifier for each value of C, in the coordinates of the given features."""

    weight: Tensor
    """(g, d, classes)"""
    bias: Tensor
    """(g, classes)"""
    iterations: list[int]
    converged: list[bool]

    def logits(self, which: int, features: Tensor) -> Tensor:
        """Return the logits (n, classes) of one of the classifiers."""
        weight = self.weight[which].to(features.device)
        return features @ weight + self.bias[which].to(features.device)


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


def fit_grid(
    features: Tensor,
    labels: Tensor,
    classes: int,
    cs: Sequence[float],
    *,
    until: Until | None = None,
    start: tuple[Tensor, Tensor] | None = None,
    finished: Callable[[int], None] | None = None,
) -> Solutions:
    """Return the classifiers for all values of C.

    Args:
        features: (n, d) float32, on the device that is to do the work.
        labels: (n,) int64 on the same device.
        classes: Number of classes.
        cs: Inverse strengths of the penalty, scikit-learn's C.
        until: When to stop.
        start: Weight (d, classes) and bias to begin from, for all C.
        finished: Told how many values of C have just converged.
    """
    until = until or Until()
    axes = principal_axes(features)
    penalty = torch.tensor([1 / (c * len(labels)) for c in cs], device=features.device)
    objective = Objective(axes, labels, classes, penalty.to(features.dtype))
    points = _begin(axes, objective, classes, start)
    scale = objective.scale.clone()
    found, iterations, converged = _minimise(objective, points, until, finished)
    plain = found / scale
    weight, bias = plain[:, :-1], plain[:, -1]
    if axes.rotation is not None:
        weight = axes.rotation @ weight
    bias = bias - (axes.mean[None, :, None] * weight).sum(dim=1)
    if not all(converged):
        late = sum(not c for c in converged)
        logger.info(
            "%d of %d values of C reached %d iterations", late, len(cs), until.max_iterations
        )
    return Solutions(weight=weight, bias=bias, iterations=iterations, converged=converged)


def _begin(
    axes: Axes, objective: Objective, classes: int, start: tuple[Tensor, Tensor] | None
) -> Tensor:
    count, width = len(objective.penalty), axes.features.shape[1] + 1
    if start is None:
        return axes.features.new_zeros(count, width, classes)
    weight, bias = (t.to(axes.features.device) for t in start)
    bias = bias + axes.mean @ weight
    turned = weight if axes.rotation is None else axes.rotation.T @ weight
    return torch.cat([turned, bias[None]])[None] * objective.scale


def _minimise(
    objective: Objective,
    points: Tensor,
    until: Until,
    finished: Callable[[int], None] | None = None,
) -> tuple[Tensor, list[int], list[bool]]:
    """Minimise all problems together; each leaves when it has converged."""
    count = len(points)
    out = torch.empty_like(points)
    most = until.max_iterations
    iterations, converged = [most] * count, [False] * count
    alive = list(range(count))
    loss, gradient = objective(points, torch.arange(count, device=points.device))
    pairs: list[tuple[Tensor, Tensor]] = []
    for iteration in range(most + 1):
        decrement = (gradient.square().sum(dim=(1, 2), dtype=torch.float64) / 2).cpu()
        done = decrement <= until.tolerance * loss.cpu()
        if iteration == most:
            out[alive] = points
            break
        for place in done.nonzero().flatten().tolist():
            out[alive[place]] = points[place]
            iterations[alive[place]], converged[alive[place]] = iteration, True
        if finished is not None:
            finished(int(done.sum()))
        if done.any():
            rows = (~done).nonzero().flatten()
            alive = [alive[i] for i in rows.tolist()]
            if not alive:
                break
            rows = rows.to(points.device)
            points, gradient, loss = points[rows], gradient[rows], loss[rows]
            pairs = [(s[rows], y[rows]) for s, y in pairs]
            objective.keep(rows)
        direction = -_inverse_times(gradient, pairs)
        new, new_loss, new_gradient = _search_line(objective, points, loss, gradient, direction)
        pairs = [*pairs, (new - points, new_gradient - gradient)][-MEMORY:]
        points, loss, gradient = new, new_loss, new_gradient
    return out, iterations, converged


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _inverse_times(gradient: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS estimate of the inverse Hessian times the gradient, for each problem."""
    q = gradient.clone()
    # a problem whose pair has no curvature (it did not move) ignores that pair
    curvature = [_dot(s, y) for s, y in pairs]
    rho = [torch.where(c > 0, 1 / c, 0.0) for c in curvature]
    kept: list[Tensor] = []
    for (s, y), r in zip(reversed(pairs), reversed(rho), strict=True):
        kept.append(r * _dot(s, q))
        q -= kept[-1] * y
    if pairs:
        s, y = pairs[-1]
        size = _dot(y, y)
        q *= torch.where(curvature[-1] > 0, curvature[-1] / size.clamp(min=1e-30), 1.0)
    for (s, y), r, a in zip(pairs, rho, reversed(kept), strict=True):
        q += (a - r * _dot(y, q)) * s
    return q


def _search_line(
    objective: Objective, points: Tensor, loss: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points with sufficient decrease, their losses and gradients; stay where there is none."""
    slope = _dot(gradient, direction).flatten().double()
    step = torch.ones_like(slope)
    new, new_loss, new_gradient = points.clone(), loss.clone(), gradient.clone()
    todo = torch.arange(len(points), device=points.device)
    for _ in range(SHRINKS):
        trial = points[todo] + step[todo, None, None].to(points.dtype) * direction[todo]
        value, slopes = objective(trial, todo)
        # rounding of the loss itself is no increase
        bound = loss[todo] + SUFFICIENT * step[todo] * slope[todo] + 1e-7 * loss[todo].abs()
        good = torch.isfinite(value) & (value <= bound)
        rows = todo[good]
        new[rows], new_loss[rows], new_gradient[rows] = trial[good], value[good], slopes[good]
        bad = todo[~good]
        if not len(bad):
            break
        rise = (value[~good] - loss[bad]).nan_to_num(nan=1e30, posinf=1e30)
        best = -slope[bad] * step[bad] ** 2 / (2 * (rise - slope[bad] * step[bad]))
        step[bad] = torch.minimum(torch.maximum(best, 0.1 * step[bad]), 0.5 * step[bad])
        todo = bad
    return new, new_loss, new_gradient
