"""Logistic regression over a grid of regularisation: choose C on held-out images, fit on all of them."""

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mimbench.data.subsets import hold_out
from mimbench.features.logistic.solver import Solutions, Until, fit_grid
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress

Solver = Literal["torch", "scikit-learn"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Values of scikit-learn's C, and how one is chosen."""

    lowest: float = 1e-6
    highest: float = 1e5
    steps: int = 45
    """Values, evenly spaced in the logarithm."""
    holdout: float = 0.1
    """Share of the training images that chooses C."""
    criterion: Literal["accuracy", "loss"] = "accuracy"
    """What is best on the held-out images; the loss is steadier where these are few."""
    solver: Solver = "torch"
    """scikit-learn's L-BFGS is the reference; torch's answers the whole grid at once."""
    max_iterations: int = 1000
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.highest or self.steps < 1:
            raise ValueError(
                f"a grid of {self.steps} values from {self.lowest} to {self.highest} is empty"
            )
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout {self.holdout} is not between 0 and 1")

    @property
    def values(self) -> list[float]:
        """Every C, smallest first."""
        return np.geomspace(self.lowest, self.highest, self.steps).tolist()


@dataclass(frozen=True, kw_only=True)
class GridProgress:
    """How many values of C are solved at once, and how far they are."""

    room: Halving
    """Halved where memory runs out; torch's solver only."""
    bar: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The chosen classifier, and how it was chosen."""

    solution: Solutions
    c: float
    record: dict[str, Any]


def choose_and_fit(
    features: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    grid: Grid,
    *,
    seed: int | NDArray[np.int64],
    views: int = 1,
    label: str = "",
) -> Fitted:
    """Choose C on a held-out part of the training images, then fit on all of them.

    Args:
        features: (views x n, d), view after view.
        labels: (n), of one view: an image is held out in all of its views.
        classes: Number of classes.
        grid: Which values of C, and how they are tried.
        seed: Chooses what is held out; or the places of the images that are.
        views: How often each image stands in `features`.
        label: Name of the progress line; none is shown without it.
    """
    if isinstance(seed, int):
        kept, held = hold_out(labels, grid.holdout, seed=seed)
    else:
        kept, held = np.setdiff1d(np.arange(len(labels)), seed), seed
    every = np.concatenate([kept + view * len(labels) for view in range(views)])
    tiled = np.tile(labels, views)
    began = time.perf_counter()
    bar = Progress(f"{label}: values of C", len(grid.values)) if label else None
    progress = GridProgress(room=Halving(size=len(grid.values)), bar=bar)
    tried = solve(features[every], tiled[every], classes, grid.values, grid, progress=progress)
    found = [
        held_out_score(tried.logits(i, features[held]), labels[held], grid.criterion)
        for i in range(len(grid.values))
    ]
    # of equal ones the strongest penalty
    best = int(np.argmax(found))
    start = (tried.weight[best], tried.bias[best])
    final = solve(features, tiled, classes, [grid.values[best]], grid, start=start)
    record = {
        "C": grid.values[best],
        "at_edge_of_grid": best in {0, len(grid.values) - 1} and len(grid.values) > 1,
        f"held_out_{grid.criterion}": dict(
            zip([f"{c:.3g}" for c in grid.values], found, strict=True)
        ),
        "iterations": tried.iterations,
        "unconverged": sum(not c for c in tried.converged),
        "solver": grid.solver,
        "values_at_once": progress.room.size if grid.solver == "torch" else 1,
        "memory_halved": progress.room.halved,
        "seconds": time.perf_counter() - began,
    }
    return Fitted(solution=final, c=grid.values[best], record=record)


def held_out_score(logits: Tensor, labels: NDArray[np.int64], criterion: str) -> float:
    """Return top-1 in percent, or minus the cross-entropy: the larger the better."""
    truth = torch.from_numpy(labels)
    if criterion == "accuracy":
        return top_percent(rank_classes(logits).cpu(), truth, 1)
    return -F.cross_entropy(logits.cpu(), truth).item()


def solve(
    features: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    cs: list[float],
    grid: Grid,
    *,
    start: tuple[Tensor, Tensor] | None = None,
    progress: GridProgress | None = None,
) -> Solutions:
    """Return the classifiers for all values of C by the solver that the grid names."""
    progress = progress or GridProgress(room=Halving(size=len(cs)))
    if grid.solver == "torch":
        found = _solve_by_torch(features, labels, classes, cs, grid, start, progress)
    else:
        found = _solve_by_sklearn(features.cpu().numpy(), labels, classes, cs, grid, progress.bar)
    if progress.bar is not None:
        progress.bar.close()
    return found


def _solve_by_torch(
    features: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    cs: list[float],
    grid: Grid,
    start: tuple[Tensor, Tensor] | None,
    progress: GridProgress,
) -> Solutions:
    on_device = torch.from_numpy(labels).to(features.device)
    parts: list[Solutions] = []
    done = 0

    def attempt(size: int) -> Solutions:
        if progress.bar is not None:
            # what a failed attempt had counted is void
            progress.bar.done = done
        return fit_grid(
            features,
            on_device,
            classes,
            cs[done : done + size],
            until=Until(tolerance=grid.tolerance, max_iterations=grid.max_iterations),
            start=start,
            finished=progress.bar.step if progress.bar is not None else None,
        )

    while done < len(cs):
        parts.append(progress.room.attempt(attempt))
        done += len(parts[-1].iterations)
    return Solutions(
        weight=torch.cat([p.weight for p in parts]),
        bias=torch.cat([p.bias for p in parts]),
        iterations=[i for p in parts for i in p.iterations],
        converged=[c for p in parts for c in p.converged],
    )


def _solve_by_sklearn(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    cs: list[float],
    grid: Grid,
    bar: Progress | None,
) -> Solutions:
    weights, biases, iterations = [], [], []
    # with two classes scikit-learn trains one vector: half of the multinomial penalty
    factor = 2.0 if len(np.unique(labels)) == 2 else 1.0
    for c in cs:
        model = LogisticRegression(C=c * factor, max_iter=grid.max_iterations).fit(features, labels)
        weight = np.zeros((features.shape[1], classes), dtype=np.float32)
        bias = np.full(classes, -np.inf, dtype=np.float32)
        coefficients, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:
            # one row for two classes: the second class against the first
            coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
            intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
        weight[:, model.classes_], bias[model.classes_] = coefficients.T, intercepts
        weights.append(torch.from_numpy(weight))
        biases.append(torch.from_numpy(bias))
        iterations.append(int(model.n_iter_[0]))
        if bar is not None:
            bar.step()
    return Solutions(
        weight=torch.stack(weights),
        bias=torch.stack(biases),
        iterations=iterations,
        converged=[i < grid.max_iterations for i in iterations],
    )
