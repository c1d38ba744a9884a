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

from mimbench.features.logistic.objective import Axes, Objective, principal_axes

logger = logging.getLogger(__name__)

MEMORY = 10
"""Pairs of steps and gradient changes kept."""
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
        finished: Called with the number of values of C that have just converged.
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
