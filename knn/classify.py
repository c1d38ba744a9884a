"""Weighted k-NN on frozen features (DINO's protocol).

Caron et al. 2021 (DINO): class token after the final norm, resize 256 bicubic, centre crop 224, no
augmentation for the bank either; features of unit length; the k nearest training images by cosine
similarity vote with weight exp(similarity / 0.07); k in 10, 20, 100, 200; top-1 and top-5 on every
validation image. Expected: DINO ViT-S/16 74.5, iBOT ViT-S/16 75.2 top-1 at k = 20.

Models without a class objective (MAE, HPM) are better described by the mean of their patch tokens:
each feature choice is reported, labelled; the first one is the table's number.

    python -m knn checkpoint.pth --data imagenet
"""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from knn.vote import Find, VoteConfig, predict, queries_at_once
from mimbench.features.bank import Choice, FeatureBank
from mimbench.features.nearby import counts_nearby, images_nearby, poolings_nearby
from mimbench.features.protocol import FrozenConfig, from_main
from mimbench.features.search import (
    Approximate,
    Floats,
    Ids,
    Metric,
    build_approximate,
    check_k,
    recall,
    search,
    search_approximate,
)
from mimbench.features.storage import storage_effect
from mimbench.model import Spec, Weights
from mimbench.scores.hits import Hits
from mimbench.scores.neighbours import vote_scores
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import stored_features

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=stored_features,
    trains=False,
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, _: config.nearby(spec),
)

RECALL_QUERIES = 1000


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: tuple[float, ...] = (0.07,)
    main_k: int = 20
    main_temperature: float = 0.07
    normalise: bool = True
    """Scale every feature vector to unit length."""
    metric: Metric = "ip"
    index: Approximate = field(default_factory=Approximate)

    def __post_init__(self) -> None:
        if not self.choices or not self.k or not self.temperature:
            raise ValueError("choices, k and temperature each need at least one value")
        if self.main_k not in self.k or self.main_temperature not in self.temperature:
            raise ValueError(
                f"main_k {self.main_k} and main_temperature {self.main_temperature} "
                f"must be among k {list(self.k)} and temperature {list(self.temperature)}"
            )
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature {min(self.temperature)} is not positive")
        super().__post_init__()

    def canonical(self) -> Self:
        """Return the main number's own choice, k and temperature; an exact search has no settings."""
        kind = self.index.kind
        return replace(
            super().canonical(),
            choices=self.choices[:1],
            k=(self.main_k,),
            temperature=(self.main_temperature,),
            index=Approximate() if kind == "exact" else self.index,
        )

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings: pooling and k read the bank, the others see every image again."""
        main = replace(
            self,
            choices=self.choices[:1],
            k=(self.main_k,),
            temperature=(self.main_temperature,),
        )
        poolings, counts = poolings_nearby(self.choices[0]), counts_nearby(self.main_k)
        return {
            **{name: replace(main, choices=(choice,)) for name, choice in poolings.items()},
            **{name: replace(main, k=(k,), main_k=k) for name, k in counts.items()},
            **images_nearby(spec, main),
        }


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 and top-5 for each feature choice, k and temperature."""
    del out
    train, val = config.images()
    check_k(max(config.k), len(train))
    with process_group(config.machine.device) as ranks:
        bank, queries = (config.features(weights, images, ranks) for images in (train, val))
        return from_main(lambda: _evaluate(bank, queries, config), ranks)


def _evaluate(train: FeatureBank, val: FeatureBank, config: Config) -> TaskResult:
    metrics: dict[str, float] = {}
    outcomes: list[Hits] = []
    notes: dict[str, Any] = {"bank_images": len(train.images), "images": len(val.images)}
    truth = torch.from_numpy(val.images.labels)
    main = (config.main_k, config.main_temperature)
    room = queries_at_once(config.machine.device)
    for choice in config.choices:
        bank, queries = (prepare(b.load(choice), normalise=config.normalise) for b in (train, val))
        ranked = predict(
            _searcher(bank, queries, config, notes),
            train.images.labels,
            queries,
            VoteConfig(
                classes=len(train.images.classes), ks=config.k, temperatures=config.temperature
            ),
            room=room,
            label=f"k-NN of {choice}",
        )
        for (k, t), best in ranked.items():
            tops = dict(zip(("top1", "top5"), vote_scores(best, truth, k), strict=True))
            metrics |= {f"{choice}_k{k}_T{t:g}_{name}": value for name, value in tops.items()}
            if choice == config.choices[0] and (k, t) == main:
                metrics |= tops
                outcomes.append(Hits.of(val.images, best.numpy()))
    notes |= {"queries_at_once": room.size, "memory_halved": room.halved}
    if config.storage != "fp32":
        notes["storage_effect"] = storage_effect(
            train, val, config.choices[0], partial(_rank_alone, config=config)
        )
    return TaskResult(metrics=metrics, outcomes=outcomes, notes=notes)


def prepare(features: Tensor, *, normalise: bool) -> Floats:
    """Return float32 features as FAISS reads them, of unit length if asked for."""
    if normalise:
        # in place: the bank is the largest thing in memory
        features = F.normalize(features, dim=1, out=features)
    return np.ascontiguousarray(features.numpy(), dtype=np.float32)


def _searcher(bank: Floats, queries: Floats, config: Config, notes: dict[str, Any]) -> Find:
    """Return the search of the configured index; of an approximate one say what it misses."""

    def exact(queries: Floats, k: int) -> tuple[Floats, Ids]:
        return search(bank, queries, k, metric=config.metric, device=config.machine.device)

    if config.index.kind == "exact":
        return exact
    index = build_approximate(bank, config.index, metric=config.metric)
    k = max(config.k)
    at = np.linspace(0, len(queries) - 1, min(RECALL_QUERIES, len(queries))).astype(int)
    some = np.ascontiguousarray(queries[at])
    found = search_approximate(index, some, k, metric=config.metric)[1]
    notes[f"recall_at_{k}"] = recall(found, exact(some, k)[1])
    notes["recall_queries"] = len(some)
    logger.info("%s index: recall at %d is %.2f %%", config.index.kind, k, notes[f"recall_at_{k}"])
    return partial(search_approximate, index, metric=config.metric)


def _rank_alone(bank: Tensor, labels: Ids, queries: Tensor, classes: int, config: Config) -> Tensor:
    """Return the five best classes by the main k and temperature, from an exact search."""
    rows, asked = (prepare(x, normalise=config.normalise) for x in (bank, queries))
    k = min(config.main_k, len(rows))
    ranked = predict(
        lambda q, k: search(rows, q, k, metric=config.metric, device=config.machine.device),
        labels,
        asked,
        VoteConfig(classes=classes, ks=[k], temperatures=[config.main_temperature]),
    )
    return ranked[k, config.main_temperature]
