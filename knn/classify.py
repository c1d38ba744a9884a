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
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from knn.index import Approximate, Floats, Ids, Metric, check_k, recall, search, search_approximate
from mimbench.data import ImageList
from mimbench.features import Choice, FeatureBank
from mimbench.files import write_json
from mimbench.metrics import Neighbours, vote_scores, weighted_votes, write_outcomes
from mimbench.protocol import FrozenConfig, from_main
from mimbench.runtime import process_group
from mimbench.weights import VitWeights

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"

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


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Return top-1 and top-5 for each feature choice, k and temperature."""
    train, val = config.images()
    check_k(max(config.k), len(train))
    with process_group() as ranks:
        bank, queries = (config.features(weights, images, ranks) for images in (train, val))
        return from_main(_evaluate(bank, queries, config, out) if ranks.main else None, ranks)


def _evaluate(train: FeatureBank, val: FeatureBank, config: Config, out: Path) -> dict[str, float]:
    metrics: dict[str, float] = {}
    extra: dict[str, Any] = {"bank_images": len(train.images), "images": len(val.images)}
    for choice in config.choices:
        bank, queries = (prepare(b.load(choice), normalise=config.normalise) for b in (train, val))
        began = time.perf_counter()
        similarity, ids = _search(bank, queries, config, extra)
        seconds = time.perf_counter() - began
        logger.info(
            "searched %d queries in %d %s in %.1f s", len(queries), len(bank), choice, seconds
        )
        scores, best = score(similarity, ids, train.images, val.images, config)
        metrics |= {f"{choice}_{name}": value for name, value in scores.items()}
        if choice == config.choices[0]:
            main = f"k{config.main_k}_T{config.main_temperature:g}"
            metrics |= {"top1": scores[f"{main}_top1"], "top5": scores[f"{main}_top5"]}
            write_outcomes(out, val.images, best.numpy())
    if config.storage != "fp32":
        extra["storage_effect"] = _storage_effect(train, val, config)
    write_json(out / "extra.json", extra)
    return metrics


def prepare(features: Tensor, *, normalise: bool) -> Floats:
    """Return float32 features as FAISS reads them, of unit length if asked for."""
    if normalise:
        # in place: the bank is the largest thing in memory
        features = F.normalize(features, dim=1, out=features)
    return np.ascontiguousarray(features.numpy(), dtype=np.float32)


def _search(
    bank: Floats, queries: Floats, config: Config, extra: dict[str, Any]
) -> tuple[Floats, Ids]:
    """Search once, at the largest k; of an approximate index say what it missed."""
    k = max(config.k)
    if config.index.kind == "exact":
        return search(bank, queries, k, metric=config.metric)
    found = search_approximate(bank, queries, k, config.index, metric=config.metric)
    some = np.linspace(0, len(queries) - 1, min(RECALL_QUERIES, len(queries))).astype(int)
    exact = search(bank, queries[some], k, metric=config.metric)[1]
    extra[f"recall_at_{k}"] = recall(found[1][some], exact)
    extra["recall_queries"] = len(some)
    logger.info("%s index: recall at %d is %.2f %%", config.index.kind, k, extra[f"recall_at_{k}"])
    return found


def score(
    similarity: Floats, ids: Ids, train: ImageList, val: ImageList, config: Config
) -> tuple[dict[str, float], Tensor]:
    """Return top-1 and top-5 for each k and temperature, and the main one's five best classes."""
    found = Neighbours(
        similarity=torch.from_numpy(similarity), labels=torch.from_numpy(train.labels[ids])
    )
    labels = torch.from_numpy(val.labels)
    scores: dict[str, float] = {}
    main = torch.empty(0)
    for temperature in config.temperature:
        voted = weighted_votes(
            found, ks=config.k, temperature=temperature, classes=len(train.classes)
        )
        for k, ranked in voted.items():
            top1, top5 = vote_scores(ranked, labels, k)
            name = f"k{k}_T{temperature:g}"
            scores |= {f"{name}_top1": top1, f"{name}_top5": top5}
            if (k, temperature) == (config.main_k, config.main_temperature):
                main = ranked
    return scores, main


def _storage_effect(train: FeatureBank, val: FeatureBank, config: Config) -> dict[str, Any]:
    """Return top-1 on the images whose exact features are kept, with exact and stored ones."""
    choice = config.choices[0]
    (at, bank), (rows, queries) = (b.exact(choice) for b in (train, val))
    k = min(config.main_k, len(at))
    found: dict[str, float] = {}
    for name, (b, q) in {
        "fp32": (bank, queries),
        config.storage: (train.load(choice)[at], val.load(choice)[rows]),
    }.items():
        similarity, ids = search(
            prepare(b, normalise=config.normalise),
            prepare(q, normalise=config.normalise),
            k,
            metric=config.metric,
        )
        neighbours = Neighbours(
            similarity=torch.from_numpy(similarity),
            labels=torch.from_numpy(train.images.labels[at][ids]),
        )
        ranked = weighted_votes(
            neighbours,
            ks=[k],
            temperature=config.main_temperature,
            classes=len(train.images.classes),
        )[k]
        found[name] = vote_scores(ranked, torch.from_numpy(val.images.labels[rows]), k)[0]
    difference = found[config.storage] - found["fp32"]
    logger.info("storing features in %s moves top-1 by %+.2f points", config.storage, difference)
    return {
        **{f"top1_{name}": value for name, value in found.items()},
        "difference": difference,
        "bank_images": len(at),
        "images": len(rows),
    }
