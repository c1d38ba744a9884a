"""Logistic regression on patches (CAPI): ade-patch-logreg, voc-patch-logreg.

Darcet et al. 2025 (CAPI): the patches of ade-patch-knn, each labelled by its most frequent pixel label;
L2-penalised multinomial logistic regression, C = 10^linspace(-6, 5, 8) chosen on a random tenth of the
training pictures, then fitted on all of them; one class for the whole patch. mIoU as in ade-patch-knn.
Published numbers of this column were not found. `stride` keeps every so many training patches, a
switch of the published script; all of ADE20K at ViT-B takes 12 GB.

    python -m transfer.dense.patch_logreg checkpoint.pth --benchmark ade-patch-logreg --data ade
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.dense.patch_logreg"))

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Self

from mimbench.data.label_maps import class_indices
from mimbench.features.logistic.grid import Grid, GridProgress, solve
from mimbench.features.logistic.solver import Solutions
from mimbench.features.nearby import images_nearby, penalties_nearby
from mimbench.model import Spec, Weights
from mimbench.networks.kinds import plain_vit
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import frozen
from transfer.dense.banks import DenseConfig, Patches, choose_largest, every, held_out
from transfer.dense.confusion import EveryClass as EveryClass
from transfer.dense.confusion import Tallier, Tally, miou_occurring
from transfer.dense.drawing import drawn_rows
from transfer.dense.neighbours import Truth
from transfer.dense.patch_knn import Ready, dense_result, prepare
from transfer.dense.patches import modal

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(footprint=frozen, nearby=lambda spec, config, notes: config.nearby(spec, notes))


@dataclass(frozen=True, kw_only=True)
class Config(DenseConfig):
    """Everything that may move the number, beside how patches are made."""

    grid: Grid = field(default_factory=lambda: Grid(steps=8))
    """Values of C; `grid.holdout` is the share of the training pictures that chooses one."""
    stride: int = 1
    """Fit on every so many training patches."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}, expected 1 or more")

    def nearby(self, spec: Spec, notes: Mapping[str, Any]) -> dict[str, Self]:
        """Return neighbours of the C that a run chose, and other sizes, which choose anew."""
        grids = penalties_nearby(self.grid, notes)
        return {
            **{name: replace(self, grid=grid) for name, grid in grids.items()},
            **images_nearby(spec, self),
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return mIoU with the C that held-out training pictures choose."""
    weights = plain_vit(weights)
    del out
    with process_group(config.machine.device) as ranks:
        return evaluate(prepare(weights, config, ranks), config)


def evaluate(ready: Ready, config: Config) -> TaskResult:
    """Choose C on held-out pictures, fit on all of them, score the val pictures."""
    kept, held = held_out(len(ready.train_truth.names), config.grid.holdout, config.seed)
    ready.train.scaler = ready.val.scaler = ready.train.fit(kept)
    values = config.grid.values
    place, record = 0, {}
    tried_miou: dict[str, float] = {}
    if len(values) > 1:
        tried, record = fit(ready, config, kept, values, label="patches, values of C")
        tallies = label_patches(tried, ready.train, ready.train_truth, held)
        scores = [miou_occurring(tally.total) for tally in tallies]
        place = choose_largest(scores)
        tried_miou = {f"{c:.3g}": value for c, value in zip(values, scores, strict=True)}
    final, last = fit(ready, config, every(len(ready.train_truth.names)), [values[place]])
    pictures = every(len(ready.val_truth.names))
    drawn = drawn_rows(len(pictures))
    [tally] = label_patches(final, ready.val, ready.val_truth, pictures, keep=drawn)
    notes = {
        "C": values[place],
        "at_edge_of_grid": place in {0, len(values) - 1} and len(values) > 1,
        "selection": f"C chosen on {len(held)} training pictures that were held out",
        "held_out_miou": tried_miou,
        "training_patches": last["patches"],
        "unconverged": record.get("unconverged", 0) + last["unconverged"],
        "iterations": record.get("iterations", []) + last["iterations"],
    }
    return dense_result(tally, ready, notes)


def fit(
    ready: Ready,
    config: Config,
    pictures: NDArray[np.int64],
    values: list[float],
    *,
    label: str = "",
) -> tuple[Solutions, dict[str, Any]]:
    """Return the classifiers for some values of C, and how they were found."""
    features, labels = labelled_patches(ready, config, pictures)
    bar = Progress(label, len(values)) if label else None
    progress = GridProgress(room=Halving(size=len(values)), bar=bar)
    truth = ready.train_truth
    found = solve(features, labels, truth.classes, values, config.grid, progress=progress)
    record = {
        "patches": len(labels),
        "iterations": list(found.iterations),
        "unconverged": sum(not done for done in found.converged),
    }
    return found, record


def labelled_patches(
    ready: Ready, config: Config, pictures: NDArray[np.int64]
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return every stride-th patch of some pictures and its class; patches without one are left out."""
    truth, done = ready.train_truth, 0
    features: list[torch.Tensor] = []
    labels: list[NDArray[np.int64]] = []
    for at, tokens in ready.train.of(pictures):
        rows = tokens.flatten(0, 1)
        pixels = np.asarray(truth.pixels[at]).reshape(len(rows), -1)
        chosen = np.arange(-done % config.stride, len(rows), config.stride)
        done += len(rows)
        values = modal(pixels[chosen])
        known = ~np.isin(values, truth.ignored)
        features.append(rows[torch.from_numpy(chosen[known]).to(rows.device)])
        labels.append(class_indices(values[known], truth.first).astype(np.int64))
    return torch.cat(features), np.concatenate(labels)


def label_patches(
    solutions: Solutions,
    queries: Patches,
    truth: Truth,
    pictures: NDArray[np.int64],
    *,
    keep: Collection[int] = (),
) -> list[Tally]:
    """Return the confusion of some pictures for each classifier: one class for a whole patch."""
    count = len(solutions.iterations)
    talliers = [Tallier(truth.classes, keep) for _ in range(count)]
    for at, tokens in queries.of(pictures):
        rows = tokens.flatten(0, 1)
        for which, tallier in enumerate(talliers):
            best = solutions.logits(which, rows).argmax(dim=1).to(torch.uint8).cpu().numpy()
            for picture, classes in zip(at, best.reshape(len(at), -1), strict=True):
                pixels = class_indices(np.asarray(truth.pixels[picture]), truth.first)
                guess = np.broadcast_to(classes[:, None], pixels.shape)
                tallier.add(truth.names[picture], pixels, guess)
    return [tallier.close() for tallier in talliers]
