"""Logistic regression on one set's features: C chosen on its validation part, refitted on all of train."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimbench.data.contents import Splits
from mimbench.data.sets import Score
from mimbench.data.subsets import hold_out
from mimbench.features.logistic.grid import Grid, choose_and_fit, solve
from mimbench.scores.metrics import rank_classes
from transfer.classification.sets.outcomes import Kept, SetHits, SetTags, eleven_points


def fit_and_score(
    train: Tensor, test: Tensor, splits: Splits, score: Score, grid: Grid, seed: int
) -> tuple[Kept, dict[str, Any]]:
    """Return what the regression answers for every test image, and how C was chosen.

    Args:
        train: (n, d) on the device that solves.
        test: (m, d) there.
        splits: The set.
        score: Its rule.
        grid: Values of C.
        seed: Chooses what is held out where there is no validation part.
    """
    if score == "tags":
        return _tags(train, test, splits, grid, seed)
    fitted = choose_and_fit(
        train, splits.train.labels, len(splits.train.classes), grid,
        seed=seed if splits.validation is None else splits.validation, label=f"logistic regression on {splits.train.where}",
    )  # fmt: skip
    ranked = rank_classes(fitted.solution.logits(0, test)).cpu().numpy()
    kept = SetHits(
        images=splits.test.names,
        labels=splits.test.labels,
        best=ranked[:, 0],
        per_class=score == "per class",
    )
    return kept, {**fitted.record, "chosen_on": _chosen_on(splits)}


def _chosen_on(splits: Splits) -> str:
    if splits.validation is None:
        return "a random share of each training class"
    return f"the official validation part, {len(splits.validation)} images"


def _tags(
    train: Tensor, test: Tensor, splits: Splits, grid: Grid, seed: int
) -> tuple[Kept, dict[str, Any]]:
    """Return one regression for each class against the rest; one C for all of them."""
    assert splits.tags is not None
    shown, wanted = splits.tags
    held = splits.validation
    if held is None:
        held = hold_out(splits.train.labels, grid.holdout, seed=seed)[1]
    kept = np.setdiff1d(np.arange(len(shown)), held)
    ones = np.ones((1, len(held)))
    found = np.zeros(len(grid.values))
    classes = [
        c for c in range(shown.shape[1]) if _both(shown[kept, c]) and (shown[held, c] == 1).any()
    ]
    for c in classes:
        answers = _against_rest(train[kept], shown[kept, c], train[held], grid.values, grid)
        found += [float(eleven_points(a, shown[held, c], ones)[0]) for a in answers]
    best = int(np.argmax(found))
    c_of_all = [grid.values[best]]
    scores = np.zeros(wanted.shape, dtype=np.float32)
    for c in range(shown.shape[1]):
        if _both(shown[:, c]):
            scores[:, c] = _against_rest(train, shown[:, c], test, c_of_all, grid)[0]
    outcomes = SetTags(images=splits.test.names, tags=wanted, scores=scores)
    record = {
        "C": grid.values[best],
        "at_edge_of_grid": best in {0, len(grid.values) - 1} and len(grid.values) > 1,
        "held_out_map11": {
            f"{c:.3g}": 100 * float(f) / max(1, len(classes))
            for c, f in zip(grid.values, found, strict=True)
        },
        "chosen_on": _chosen_on(splits),
        "rule": "one regression a class against the rest, difficult images left out; 11-point mAP",
    }
    return outcomes, record


def _both(tags: NDArray[np.int8]) -> bool:
    return bool((tags == 1).any() and (tags == 0).any())


def _against_rest(
    train: Tensor, tags: NDArray[np.int8], asked: Tensor, cs: list[float], grid: Grid
) -> list[NDArray[np.float32]]:
    """Return, for each C, how much each asked image speaks for the class (m,)."""
    counts = np.flatnonzero(tags >= 0)
    labels = tags[counts].astype(np.int64)
    solved = solve(train[torch.from_numpy(counts).to(train.device)], labels, 2, cs, grid)
    out = []
    for i in range(len(cs)):
        logits = solved.logits(i, asked)
        out.append((logits[:, 1] - logits[:, 0]).float().cpu().numpy())
    return out
