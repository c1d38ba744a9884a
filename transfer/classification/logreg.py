"""in-logreg: multinomial logistic regression on features computed once.

DINOv2's evaluation (Oquab et al. 2023): L2 penalty, C in 45 logarithmic steps from 1e-6 to 1e5,
chosen on 10 % of the training images, refitted on all of them; up to 1000 L-BFGS iterations. Each
image is seen once (or in `views` named views), where a 90-epoch probe sees it 90 times with
augmentation: the two are different protocols and stand in different columns.

    python -m transfer.classification.logreg checkpoint.pth --data imagenet
"""

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mimbench.features import Choice, FeatureBank
from mimbench.files import write_json
from mimbench.metrics import rank_classes, top_percent, write_outcomes
from mimbench.protocol import FrozenConfig, from_main
from mimbench.runtime import pick_device, process_group
from mimbench.subsets import hold_out
from mimbench.weights import VitWeights
from transfer.classification.solver import Solutions, fit_grid

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"

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
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    normalise: bool = False
    """Scale every feature vector to unit length."""
    grid: Grid = Grid()
    views: int = 1
    """1: the centre crop. More: that many training views, the further ones random crops and flips."""

    def __post_init__(self) -> None:
        if not self.choices or self.views < 1:
            raise ValueError(
                f"choices {list(self.choices)} and views {self.views} need at least one"
            )
        super().__post_init__()


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Return top-1 and top-5 on val for each feature choice."""
    train, val = config.images()
    with process_group() as ranks:
        views = [config.features(weights, train, ranks, view=view) for view in range(config.views)]
        queries = config.features(weights, val, ranks)
        device = pick_device(config.machine.device, ranks.local)
        metrics = _evaluate(views, queries, config, out, device) if ranks.main else None
        return from_main(metrics, ranks)


def _evaluate(
    views: list[FeatureBank], val: FeatureBank, config: Config, out: Path, device: torch.device
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    extra: dict[str, Any] = {
        "train_images": len(views[0].images),
        "views": config.views,
        "images": len(val.images),
    }
    labels = views[0].images.labels
    for choice in config.choices:
        train = torch.cat([scale(v.load(choice), normalise=config.normalise) for v in views])
        queries = scale(val.load(choice), normalise=config.normalise).to(device)
        fitted = choose_and_fit(
            train.to(device),
            labels,
            len(val.images.classes),
            config.grid,
            seed=config.seed,
            views=config.views,
        )
        ranked = rank_classes(fitted.solution.logits(0, queries)).cpu()
        truth = torch.from_numpy(val.images.labels)
        metrics |= {
            f"{choice}_top1": top_percent(ranked, truth, 1),
            f"{choice}_top5": top_percent(ranked, truth, 5),
        }
        extra[choice] = fitted.record
        logger.info("%s: top-1 %.2f at C = %.3g", choice, metrics[f"{choice}_top1"], fitted.c)
        if choice == config.choices[0]:
            metrics |= {k: metrics[f"{choice}_{k}"] for k in ("top1", "top5")}
            write_outcomes(out, val.images, ranked.numpy())
    write_json(out / "extra.json", extra)
    return metrics


def scale(features: Tensor, *, normalise: bool) -> Tensor:
    """Return the features, of unit length if asked for."""
    return F.normalize(features, dim=1) if normalise else features


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
    seed: int,
    views: int = 1,
) -> Fitted:
    """Choose C on a held-out part of the training images, then fit on all of them.

    Args:
        features: (views x n, d), view after view.
        labels: (n), of one view: an image is held out in all of its views.
        classes: Number of classes.
        grid: Which values of C, and how they are tried.
        seed: Chooses what is held out.
        views: How often each image stands in `features`.
    """
    kept, held = hold_out(labels, grid.holdout, seed=seed)
    every = np.concatenate([kept + view * len(labels) for view in range(views)])
    tiled = np.tile(labels, views)
    began = time.perf_counter()
    tried = solve(features[every], tiled[every], classes, grid.values, grid)
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
) -> Solutions:
    """Return the classifiers for all values of C by the solver that the grid names."""
    if grid.solver == "torch":
        return fit_grid(
            features,
            torch.from_numpy(labels).to(features.device),
            classes,
            cs,
            tolerance=grid.tolerance,
            max_iterations=grid.max_iterations,
            start=start,
        )
    return _solve_by_sklearn(features.cpu().numpy(), labels, classes, cs, grid)


def _solve_by_sklearn(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    cs: list[float],
    grid: Grid,
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
    return Solutions(
        weight=torch.stack(weights),
        bias=torch.stack(biases),
        iterations=iterations,
        converged=[i < grid.max_iterations for i in iterations],
    )


if __name__ == "__main__":
    from mimbench.task_main import task_main

    sys.exit(task_main("transfer.classification.logreg"))
