"""Revisited Oxford and Paris: mean average precision of cosine neighbours.

Radenovic et al. 2018: 70 queries each; images of the database are easy, hard or junk for a query, and
easy, medium and hard count different ones. DINO's protocol (`roxf`, `rpar`): longer side shrunk to 224
(Oxford) or 512 at three scales (Paris), class token after the final norm, queries **not** cropped.
The official code crops them to the landmark first (`roxf-crop`, `rpar-crop`): both exist in print.
Expected: DINOv3 B on Oxford hard 58.5 (its preprocessing is not stated).

    python -m transfer.retrieval.landmarks checkpoint.pth --benchmark roxf --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.retrieval.landmarks"))

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import Self

from mimbench.data.contents import Ids, Landmarks
from mimbench.data.preprocess import Thumbnail
from mimbench.data.sets import read_set
from mimbench.features.bank import Choice, FeatureBank
from mimbench.features.nearby import images_nearby, poolings_nearby
from mimbench.features.protocol import from_main
from mimbench.features.search import Floats, search
from mimbench.model import Spec, Weights
from mimbench.scores.figures import Figure, Picture
from mimbench.system.runtime import Precision, Ranks, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import stored_features
from transfer.retrieval.outcomes import QueryScores as QueryScores
from transfer.retrieval.pictures import LEFT_OUT, RIGHT, SHOWN, WRONG, RetrievedRow, retrieved
from transfer.retrieval.precision import PROTOCOLS, judgements, score
from transfer.retrieval.vectors import WholeSpec, unit, whole_bank

VERSION = 1
MAIN_METRIC = "map_medium"
TRAITS = Traits(
    footprint=stored_features,
    trains=False,
    whole_folder=True,
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, _: config.nearby(spec),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that may move the number."""

    published: str = "roxford5k"
    """Which set: roxford5k or rparis6k."""
    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    image_size: int = 224
    """Length of the longer side; smaller images are left as they are."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which an image is seen; its vectors are averaged, then scaled to unit length."""
    crop_queries: bool = False
    """Cut queries to the landmark's box first, as the official code does and DINO's does not."""
    precision: Precision = "fp32"
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if not self.choices or not self.scales or min(self.scales) <= 0:
            raise ValueError(
                f"choices {list(self.choices)} and positive scales {list(self.scales)} are needed"
            )

    def canonical(self) -> Self:
        """Return the main number's own choice of features."""
        return replace(self, choices=self.choices[:1])

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings: other pooling reads the bank, other sizes see every image again."""
        main = self.canonical()
        poolings = poolings_nearby(self.choices[0])
        return {
            **{name: replace(main, choices=(choice,)) for name, choice in poolings.items()},
            **images_nearby(spec, main),
        }

    def features(
        self, weights: Weights, truth: Landmarks, ranks: Ranks
    ) -> tuple[FeatureBank, FeatureBank]:
        """Return the banks of the database and of the queries."""
        blocks = 4 if any("4" in choice for choice in self.choices) else 1
        spec = WholeSpec(
            preprocess=Thumbnail(size=self.image_size),
            blocks=blocks,
            precision=self.precision,
            scales=self.scales,
        )
        queries = truth.cropped() if self.crop_queries else truth.queries
        database = whole_bank(weights, truth.database, spec, self.machine, ranks)
        return database, whole_bank(weights, queries, spec, self.machine, ranks)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return mAP and mean precisions under easy, medium and hard for each feature choice."""
    del out
    truth = read_set(config.published, config.data, Landmarks)
    with process_group(config.machine.device) as ranks:
        database, queries = config.features(weights, truth, ranks)
        return from_main(lambda: _evaluate(database, queries, truth, config), ranks)


def _evaluate(
    database: FeatureBank, queries: FeatureBank, truth: Landmarks, config: Config
) -> TaskResult:
    metrics: dict[str, float] = {}
    found = [_ranked(database, queries, truth, choice, config) for choice in config.choices]
    for choice, ranked in zip(config.choices, found, strict=True):
        metrics |= {f"{choice}_{k}": value for k, value in ranked.outcomes.metrics().items()}
    outcomes, shown, ties = found[0]
    metrics |= outcomes.metrics()
    return TaskResult(
        metrics=metrics,
        outcomes=[outcomes],
        figures=[Figure(title="mAP", values={p: metrics[f"map_{p}"] for p in _counted(metrics)})],
        pictures=[neighbours(shown, truth, queries)],
        notes={
            "images": len(truth.database),
            "queries": len(truth.queries),
            "queries_cropped": config.crop_queries,
            "queries_without_positives": {
                p: sum(not len(j.positive) for j in judgements(truth, p)) for p in PROTOCOLS
            },
            "ties": f"equal similarities rank by the database's order; {ties} queries have any",
        },
    )


class Ranked(NamedTuple):
    """What one choice of features finds."""

    outcomes: QueryScores
    rankings: Ids
    ties: int
    """Queries with two images at equal similarity."""


def _ranked(
    database: FeatureBank, queries: FeatureBank, truth: Landmarks, choice: str, config: Config
) -> Ranked:
    bank, asked = (unit(b.load(choice)) for b in (database, queries))
    similarity, rankings = rank(bank, asked, config.machine.device)
    kept = QueryScores(images=queries.images.names, values=score(rankings, truth))
    return Ranked(kept, rankings, tied_queries(similarity))


def _counted(metrics: dict[str, float]) -> list[str]:
    return [protocol for protocol in PROTOCOLS if f"map_{protocol}" in metrics]


def rank(bank: Floats, queries: Floats, device: str) -> tuple[Floats, Ids]:
    """Return similarities and places (queries, images) of the whole database, the nearest first."""
    return search(bank, queries, len(bank), metric="ip", device=device)


def tied_queries(similarity: Floats) -> int:
    """Return how many queries have two images at equal similarity."""
    return int((similarity[:, 1:] == similarity[:, :-1]).any(axis=1).sum())


def neighbours(rankings: Ids, truth: Landmarks, queries: FeatureBank) -> Picture:
    """Return a few queries with what was found for them, judged as medium does."""
    judged = judgements(truth, "medium")
    rows = []
    for query in np.unique(np.linspace(0, len(rankings) - 1, 6).astype(int)).tolist():
        mine = judged[query]
        colours = [
            RIGHT if index in mine.positive else LEFT_OUT if index in mine.ignored else WRONG
            for index in rankings[query, :SHOWN]
        ]
        found = zip(rankings[query, :SHOWN].tolist(), colours, strict=True)
        rows.append(RetrievedRow(query=query, found=list(found)))
    caption = (
        "queries and their nearest images: blue right, orange wrong, grey not counted (medium)"
    )
    return retrieved(rows, queries.images, truth.database, caption)
