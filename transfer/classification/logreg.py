"""in-logreg: multinomial logistic regression on features computed once.

DINOv2's evaluation (Oquab et al. 2023): L2 penalty, C in 45 logarithmic steps from 1e-6 to 1e5,
chosen on 10 % of the training images, refitted on all of them; up to 1000 L-BFGS iterations. Each
image is seen once (or in `views` named views), where a 90-epoch probe sees it 90 times with
augmentation: the two are different protocols and stand in different columns.

    python -m transfer.classification.logreg checkpoint.pth --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.logreg"))

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Self

from mimbench.features.bank import Choice, FeatureBank
from mimbench.features.logistic.grid import Fitted, Grid, choose_and_fit, solve
from mimbench.features.nearby import images_nearby, penalties_nearby, poolings_nearby
from mimbench.features.protocol import FrozenConfig, from_main
from mimbench.features.storage import storage_effect
from mimbench.model import Spec, Weights
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.system.memory import is_out_of_memory
from mimbench.system.runtime import pick_device, process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import stored_features

logger = logging.getLogger(__name__)

HEAD_FILE = "head.safetensors"
"""In a run's folder: the fitted classifier, `weight` (d, classes) and `bias` (classes,)."""
VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=stored_features,
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, notes: config.nearby(spec, notes),
)


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    normalise: bool = False
    """Scale every feature vector to unit length."""
    grid: Grid = field(default_factory=Grid)
    views: int = 1
    """1: the centre crop. More: that many training views, the further ones random crops and flips."""

    def __post_init__(self) -> None:
        if not self.choices or self.views < 1:
            raise ValueError(
                f"choices {list(self.choices)} and views {self.views} need at least one"
            )
        super().__post_init__()

    def canonical(self) -> Self:
        """Return the main number's own choice of features."""
        return replace(super().canonical(), choices=self.choices[:1])

    def nearby(self, spec: Spec, notes: Mapping[str, Any]) -> dict[str, Self]:
        """Return neighbouring settings: pooling and C read the bank, the others see every image again."""
        chosen = self.choices[0]
        main = replace(self, choices=(chosen,))
        poolings = poolings_nearby(chosen)
        grids = penalties_nearby(self.grid, notes.get(chosen, {}))
        return {
            **{name: replace(main, choices=(choice,)) for name, choice in poolings.items()},
            **{name: replace(main, grid=grid) for name, grid in grids.items()},
            **images_nearby(spec, main),
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 and top-5 on val for each feature choice."""
    train, val = config.images()
    with process_group(config.machine.device) as ranks:
        views = [config.features(weights, train, ranks, view=view) for view in range(config.views)]
        queries = config.features(weights, val, ranks)
        device = pick_device(config.machine.device, ranks.local)
        return from_main(lambda: _evaluate(views, queries, config, device, out), ranks)


def _evaluate(
    views: list[FeatureBank], val: FeatureBank, config: Config, device: torch.device, out: Path
) -> TaskResult:
    metrics: dict[str, float] = {}
    outcomes: list[Hits] = []
    notes: dict[str, Any] = {
        "train_images": len(views[0].images),
        "views": config.views,
        "images": len(val.images),
    }
    labels = views[0].images.labels
    for choice in config.choices:
        train = torch.cat([scale(v.load(choice), normalise=config.normalise) for v in views])
        queries = scale(val.load(choice), normalise=config.normalise).to(device)
        fitted = _fit(train, labels, len(val.images.classes), choice, config, device)
        ranked = rank_classes(fitted.solution.logits(0, queries)).cpu()
        truth = torch.from_numpy(val.images.labels)
        metrics |= {
            f"{choice}_top1": top_percent(ranked, truth, 1),
            f"{choice}_top5": top_percent(ranked, truth, 5),
        }
        notes[choice] = fitted.record
        logger.info("%s: top-1 %.2f at C = %.3g", choice, metrics[f"{choice}_top1"], fitted.c)
        if choice == config.choices[0]:
            metrics |= {k: metrics[f"{choice}_{k}"] for k in ("top1", "top5")}
            outcomes.append(Hits.of(val.images, ranked.numpy()))
            keep_head(out / HEAD_FILE, fitted)
    if config.storage != "fp32":
        c = notes[config.choices[0]]["C"]
        rank = partial(_rank_at, c=c, config=config, device=device)
        notes["storage_effect"] = storage_effect(views[0], val, config.choices[0], rank)
    return TaskResult(metrics=metrics, outcomes=outcomes, notes=notes)


def keep_head(path: Path, fitted: Fitted) -> None:
    """Write the classifier of the main features, for protocols that use it on other images."""
    solution = fitted.solution
    tensors = {"weight": solution.weight[0], "bias": solution.bias[0]}
    with atomic_path(path) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)


def _fit(
    train: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    choice: Choice,
    config: Config,
    device: torch.device,
) -> Fitted:
    """Return the fit on the device, or on the CPU where not even one value of C fits there."""

    def on(place: torch.device) -> Fitted:
        return choose_and_fit(
            train.to(place),
            labels,
            classes,
            config.grid,
            seed=config.seed,
            views=config.views,
            label=f"logistic regression on {choice}",
        )

    try:
        return on(device)
    except (RuntimeError, UserError) as error:
        if device.type == "cpu" or not is_out_of_memory(error.__cause__ or error):
            raise
    logger.warning("the features do not fit on %s: solving on the CPU", device)
    return on(torch.device("cpu"))


def _rank_at(
    train: Tensor,
    labels: NDArray[np.int64],
    queries: Tensor,
    classes: int,
    *,
    c: float,
    config: Config,
    device: torch.device,
) -> Tensor:
    """Return the five best classes of each query at one C."""
    x, asked = (scale(f, normalise=config.normalise).to(device) for f in (train, queries))
    return rank_classes(solve(x, labels, classes, [c], config.grid).logits(0, asked)).cpu()


def scale(features: Tensor, *, normalise: bool) -> Tensor:
    """Return the features, of unit length if asked for."""
    return F.normalize(features, dim=1) if normalise else features
