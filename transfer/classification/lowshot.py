"""Few labels on frozen features: 1, 5, 10, 20 images a class, or 1 % and 10 %, in several draws.

Kakogeorgiou et al. 2022 (AttMask): v images of each class, in the order of the files from an offset;
weighted k-NN with k = 1 for v = 1, else 20, T 0.07; all of val; mean of five offsets (0, 5, ..., 20
for v = 1 and 5; steps of v above). Zhou et al. 2022 (iBOT): logistic regression on features of unit
length for 1 % and 10 %. Never a single draw: the mean and the standard deviation are reported, unless
a published list is given as a file.

Fine-tuning and linear probes on 1 % and 10 % are those tasks with `subset: {fraction: 0.01}`.

    python -m transfer.classification.lowshot checkpoint.pth --benchmark in-shot-5 --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.lowshot"))

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from mimbench.data.lists import ImageList
from mimbench.data.subsets import draw_fraction, draw_per_class, first_per_class, read_list
from mimbench.features.bank import Choice, FeatureBank, open_bank
from mimbench.features.logistic.grid import Grid, choose_and_fit, solve
from mimbench.features.nearby import counts_nearby, images_nearby, poolings_nearby
from mimbench.features.protocol import FrozenConfig, by_content, from_main
from mimbench.features.storage import storage_effect
from mimbench.model import Spec, Weights
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.scores.neighbours import knn
from mimbench.system.errors import UserError
from mimbench.system.progress import Progress
from mimbench.system.runtime import Ranks, pick_device, process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import stored_features
from transfer.classification.logreg import scale

VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=stored_features,
    trains=lambda config: config.methods[0] != "knn",
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, _: config.nearby(spec),
)

Method = Literal["knn", "logreg"]
ENOUGH = 5
"""Images of a class from which one can be held out to choose C."""


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choice: Choice = "cls"
    methods: tuple[Method, ...] = ("knn", "logreg")
    """Each is reported; the first is the main one."""
    per_class: int | None = None
    fraction: float | None = None
    files: tuple[Path, ...] = ()
    """Published lists, one draw each."""
    draws: int = 5
    order: Literal["files", "random"] = "files"
    """With per_class: consecutive files from several offsets (AttMask), or random ones."""
    k: int = 20
    """Neighbours; 1 with one image a class."""
    temperature: float = 0.07
    grid: Grid = field(
        default_factory=lambda: Grid(
            lowest=1e-2, highest=1e6, steps=17, holdout=0.2, criterion="loss"
        )
    )
    c_without_choice: float = 10.0
    """C where classes have too few images to hold one out."""

    def __post_init__(self) -> None:
        named = [self.per_class is not None, self.fraction is not None, bool(self.files)]
        if sum(named) != 1:
            raise ValueError("name exactly one of per_class, fraction and files")
        if self.draws < 2 and not self.files:
            raise ValueError(f"draws is {self.draws}; a spread takes at least 2")
        if not self.methods:
            raise ValueError("methods needs at least one of knn, logreg")
        super().__post_init__()

    def canonical(self) -> Self:
        """Return the main method alone, without what only others read."""
        usual, main = Config(data=self.data, fraction=0.5), self.methods[0]
        unread = ("grid", "c_without_choice") if main == "knn" else ("k", "temperature")
        if main == "knn" and self.per_class == 1:
            unread += ("k",)
        if self.files:
            unread += ("draws",)
        if self.per_class is None:
            unread += ("order",)
        return replace(
            super().canonical(),
            methods=(main,),
            files=tuple(by_content(path) for path in self.files),
            **{name: getattr(usual, name) for name in unread},
        )

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings of the main method, on the same draws."""
        main = replace(self, methods=self.methods[:1])
        found = {n: replace(main, choice=c) for n, c in poolings_nearby(self.choice).items()}
        if main.methods == ("logreg",):
            other = "loss" if self.grid.criterion == "accuracy" else "accuracy"
            found["other criterion for C"] = replace(main, grid=replace(self.grid, criterion=other))
        elif self.per_class != 1:
            found |= {name: replace(main, k=k) for name, k in counts_nearby(self.k).items()}
        return found | images_nearby(spec, main)

    def draw(self, train: ImageList) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each draw's name and its images."""
        for path in self.files:
            yield path.stem, read_list(path, train)
        for i in range(0 if self.files else self.draws):
            if self.fraction is not None:
                yield f"draw {i}", draw_fraction(train.labels, self.fraction, draw=i)
            elif self.per_class is not None and self.order == "random":
                yield f"draw {i}", draw_per_class(train.labels, self.per_class, draw=i)
            elif self.per_class is not None:
                offset = i * max(self.per_class, 5)
                yield (
                    f"offset {offset}",
                    first_per_class(train.labels, self.per_class, offset=offset),
                )


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return the mean top-1 and top-5 over draws, and their standard deviation."""
    del out
    train, val = config.images()
    draws = list(config.draw(train))
    with process_group(config.machine.device) as ranks:
        bank, rows = _bank_of(weights, train, [d for _, d in draws], config, ranks)
        queries = config.features(weights, val, ranks)
        device = pick_device(config.machine.device, ranks.local)

        def work() -> TaskResult:
            features = bank.load(config.choice)
            sets = [
                (name, features[r], bank.images.labels[r])
                for (name, _), r in zip(draws, rows, strict=True)
            ]
            return _evaluate(sets, bank, queries, config, device)

        return from_main(work, ranks)


def _bank_of(
    weights: Weights,
    train: ImageList,
    draws: list[NDArray[np.int64]],
    config: Config,
    ranks: Ranks,
) -> tuple[FeatureBank, list[NDArray[np.int64]]]:
    """Return a bank that holds all draws and their rows in it: the whole one if it is there."""
    whole = open_bank(weights, train, config.bank())
    if not from_main(lambda: bool(whole.missing()), ranks):
        return whole, draws
    every = np.unique(np.concatenate(draws))
    bank = config.features(weights, train.subset(every), ranks)
    return bank, [np.searchsorted(every, draw) for draw in draws]


def _evaluate(
    sets: list[tuple[str, Tensor, NDArray[np.int64]]],
    train: FeatureBank,
    val: FeatureBank,
    config: Config,
    device: torch.device,
) -> TaskResult:
    queries = scale(val.load(config.choice), normalise=True).to(device)
    truth = torch.from_numpy(val.images.labels)
    classes = len(val.images.classes)
    metrics: dict[str, float] = {}
    outcomes: list[Hits] = []
    notes: dict[str, Any] = {"images": len(truth), "draws": [name for name, _, _ in sets]}
    bar = Progress("few labels: draws", len(config.methods) * len(sets))
    for method in config.methods:
        found: list[Tensor] = []
        for name, features, labels in sets:
            shots = scale(features, normalise=True).to(device)
            ranked, note = answer(method, shots, labels, queries, classes, config)
            found.append(ranked)
            top1 = top_percent(ranked, truth, 1)
            bar.step(top1=top1)
            notes[f"{method}, {name}"] = {"train_images": len(labels), "top1": top1, **note}
        metrics |= spread(method, [[top_percent(r, truth, k) for k in (1, 5)] for r in found])
        if method == config.methods[0]:
            draws = torch.stack(found)[:, :, 0].numpy() if len(found) > 1 else None
            outcomes.append(Hits.of(val.images, found[0].numpy(), draws=draws))
    bar.close()
    if config.storage != "fp32":

        def rank(shots: Tensor, labels: NDArray[np.int64], asked: Tensor, classes: int) -> Tensor:
            x, asked = (scale(f, normalise=True).to(device) for f in (shots, asked))
            fitting = replace(config, k=min(config.k, len(x)))
            return answer(config.methods[0], x, labels, asked, classes, fitting)[0]

        notes["storage_effect"] = storage_effect(train, val, config.choice, rank)
    own = {n: f"{config.methods[0]}_{n}" for n in ("top1", "top1_sd", "top5")}
    metrics |= {n: metrics[name] for n, name in own.items() if name in metrics}
    return TaskResult(metrics=metrics, outcomes=outcomes, notes=notes, draws=len(sets))


def answer(
    method: Method,
    shots: Tensor,
    labels: NDArray[np.int64],
    queries: Tensor,
    classes: int,
    config: Config,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the five best classes (n, 5) of every query, and notes."""
    if method == "knn":
        return vote(shots, labels, queries, classes, config), {}
    return regress(shots, labels, queries, classes, config)


def spread(method: str, tops: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return mean top-1 and top-5, and where there are several draws the deviation of top-1 over them."""
    top1 = np.array([one for one, _ in tops])
    deviation = {f"{method}_top1_sd": float(top1.std(ddof=1))} if len(top1) > 1 else {}
    return deviation | {
        f"{method}_top1": float(top1.mean()),
        f"{method}_top5": float(np.mean([five for _, five in tops])),
    }


def vote(
    shots: Tensor, labels: NDArray[np.int64], queries: Tensor, classes: int, config: Config
) -> Tensor:
    """Return the five best classes (n, 5) by weighted k-NN; ties go to the first image."""
    k = 1 if config.per_class == 1 else config.k
    if k > len(shots):
        raise UserError(f"k = {k} neighbours among {len(shots)} images; lower k")
    return knn(
        shots,
        torch.from_numpy(labels),
        queries,
        k=k,
        temperature=config.temperature,
        classes=classes,
    )


def regress(
    shots: Tensor, labels: NDArray[np.int64], queries: Tensor, classes: int, config: Config
) -> tuple[Tensor, dict[str, Any]]:
    """Return the five best classes (n, 5) by logistic regression, and how C was chosen."""
    fewest = int(np.bincount(labels, minlength=classes).min())
    if fewest >= ENOUGH:
        fitted = choose_and_fit(shots, labels, classes, config.grid, seed=config.seed)
        solution, note = fitted.solution, {"C": fitted.c, "chosen_on": "held-out images"}
    else:
        c = config.c_without_choice
        solution = solve(shots, labels, classes, [c], config.grid)
        note = {"C": c, "chosen_on": f"nothing: a class has {fewest} images"}
    return rank_classes(solution.logits(0, queries)).cpu(), note
