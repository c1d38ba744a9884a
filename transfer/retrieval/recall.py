"""Recall@K of fine-grained classes: CUB, Cars, Stanford Online Products, In-Shop, or a folder of classes.

The metric-learning protocol with a frozen backbone: resize 256 (CUB) or 224, crop 224, unit length,
cosine. CUB and Cars score the second half of their classes, SOP its 11,316 test products, each image
against all others; In-Shop scores its query part against its gallery. R@K is the share of queries with
one of their class among the K nearest. The query itself is left out by its place, never as "the
nearest": a duplicate would take its place. Expected, by MIEB with its own split: CUB DINOv2 B 85.7.

    python -m transfer.retrieval.recall checkpoint.pth --benchmark cub-retr --data DIR
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.retrieval.recall"))

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import Self

from mimbench.data.contents import Ids, QueryGallery, Splits, second_half
from mimbench.data.lists import read_folder
from mimbench.data.preprocess import Interpolation, Preprocess
from mimbench.data.sets import published
from mimbench.features.bank import BankSpec, Choice, FeatureBank
from mimbench.features.extract import extract
from mimbench.features.nearby import images_nearby, poolings_nearby
from mimbench.features.protocol import from_main
from mimbench.features.search import Floats, check_k, search
from mimbench.model import Spec, Weights
from mimbench.scores.figures import Figure, Picture
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.runtime import Precision, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.vit.footprint import stored_features
from transfer.retrieval.outcomes import QueryScores as QueryScores
from transfer.retrieval.pictures import RIGHT, SHOWN, WRONG, RetrievedRow, retrieved
from transfer.retrieval.vectors import unit

VERSION = 1
MAIN_METRIC = "recall1"
TRAITS = Traits(
    footprint=stored_features,
    trains=False,
    whole_folder=True,
    canonical=lambda config: config.canonical(),
    nearby=lambda spec, config, _: config.nearby(spec),
)
FOLDER = "folder"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that may move the number."""

    published: str = FOLDER
    """cub, cars, sop or inshop; `folder`: any folder of classes, each image against all others."""
    split: str = "val"
    """Of `folder`: the part that is scored."""
    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is reported; the first is the main one."""
    k: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """1 is the main one."""
    image_size: int = 224
    resize: int | None = 256
    """Length of the shorter side before the centre crop; null leaves the image as it is."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        if not self.choices or 1 not in self.k or min(self.k) < 1:
            raise ValueError(f"choices {list(self.choices)} and k {list(self.k)}: k needs a 1")
        self.preprocess()

    def preprocess(self) -> Preprocess:
        """Return the centre crop."""
        return Preprocess(
            size=self.image_size, resize=self.resize, interpolation=self.interpolation
        )

    def canonical(self) -> Self:
        """Return the main number's own choice of features."""
        return replace(self, choices=self.choices[:1], k=(1,))

    def nearby(self, spec: Spec) -> dict[str, Self]:
        """Return neighbouring settings: other pooling reads the bank, the others see every image again."""
        main = self.canonical()
        poolings = poolings_nearby(self.choices[0])
        return {
            **{name: replace(main, choices=(choice,)) for name, choice in poolings.items()},
            **images_nearby(spec, main),
        }

    def images(self) -> QueryGallery:
        """Return queries and gallery by the set's own rule."""
        if self.published == FOLDER:
            images = read_folder(self.data, self.split)
            return QueryGallery(queries=images, gallery=images)
        if self.published not in published():
            known = [FOLDER, *published()]
            raise UserError(f"no set '{self.published}'" + did_you_mean(self.published, known))
        content = published()[self.published].read(self.data)
        if isinstance(content, Splits):
            return second_half(content)
        if not isinstance(content, QueryGallery):
            raise UserError(f"'{self.published}' has no queries with a class")
        return content


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return Recall@K in percent for each feature choice."""
    del out
    pair = config.images()
    blocks = 4 if any("4" in choice for choice in config.choices) else 1
    spec = BankSpec(preprocess=config.preprocess(), blocks=blocks, precision=config.precision)
    check_k(max(config.k), len(pair.gallery) - pair.leave_one_out)
    with process_group(config.machine.device) as ranks:
        gallery = extract(weights, pair.gallery, spec, config.machine, ranks=ranks)
        queries = gallery
        if not pair.leave_one_out:
            queries = extract(weights, pair.queries, spec, config.machine, ranks=ranks)
        return from_main(lambda: _evaluate(gallery, queries, pair, config), ranks)


class Nearest(NamedTuple):
    """What one choice of features finds."""

    outcomes: QueryScores
    ids: Ids
    """(queries, largest K) places in the gallery."""
    ties: int
    """Queries whose nearest image is as near as the second, and of another class."""


def _evaluate(
    gallery: FeatureBank, queries: FeatureBank, pair: QueryGallery, config: Config
) -> TaskResult:
    found = [_nearest(gallery, queries, pair, choice, config) for choice in config.choices]
    metrics = found[0].outcomes.metrics()
    for choice, nearest in zip(config.choices, found, strict=True):
        metrics |= {f"{choice}_{k}": value for k, value in nearest.outcomes.metrics().items()}
    alone = _without_match(pair)
    return TaskResult(
        metrics=metrics,
        outcomes=[found[0].outcomes],
        figures=[
            Figure(
                title="Recall@K",
                values={str(k): metrics[f"recall{k}"] for k in sorted(config.k)},
                kind="line",
            )
        ],
        pictures=[neighbours(found[0].ids, pair)],
        notes={
            "queries": len(pair.queries),
            "gallery": len(pair.gallery),
            "leave_one_out": pair.leave_one_out,
            "queries_without_match": alone,
            "ties": "equal similarities rank by the gallery's order; it decides the nearest image's "
            f"class for {found[0].ties} queries",
        },
    )


def _nearest(
    gallery: FeatureBank, queries: FeatureBank, pair: QueryGallery, choice: str, config: Config
) -> Nearest:
    bank = unit(gallery.load(choice))
    asked = bank if pair.leave_one_out else unit(queries.load(choice))
    most = max(config.k)
    similarity, ids = others(bank, asked, most, pair, config.machine.device)
    right = pair.gallery.labels[ids] == pair.queries.labels[:, None]
    scores = {f"recall{k}": right[:, :k].any(axis=1).astype(np.float64) for k in sorted(config.k)}
    ties = 0
    if most > 1:
        ties = int(((similarity[:, 0] == similarity[:, 1]) & (right[:, 0] != right[:, 1])).sum())
    return Nearest(QueryScores(images=pair.queries.names, values=scores), ids, ties)


def others(
    bank: Floats, queries: Floats, k: int, pair: QueryGallery, device: str
) -> tuple[Floats, Ids]:
    """Return the k nearest images of the gallery (queries, k), never the query itself."""
    if not pair.leave_one_out:
        return search(bank, queries, k, metric="ip", device=device)
    similarity, ids = search(bank, queries, k + 1, metric="ip", device=device)
    kept = ids != np.arange(len(queries))[:, None]
    # where k + 1 duplicates come before it, the query is not among them: the last one goes
    kept[kept.all(axis=1), -1] = False
    return similarity[kept].reshape(-1, k), ids[kept].reshape(-1, k)


def _without_match(pair: QueryGallery) -> int:
    """Return how many queries have no image of their class to find."""
    counts = np.bincount(pair.gallery.labels, minlength=len(pair.queries.classes))
    return int((counts[pair.queries.labels] <= pair.leave_one_out).sum())


def neighbours(ids: Ids, pair: QueryGallery) -> Picture:
    """Return a few queries with their nearest images."""
    rows = []
    for query in np.unique(np.linspace(0, len(ids) - 1, 6).astype(int)).tolist():
        label = pair.queries.labels[query]
        found = [
            (index, RIGHT if pair.gallery.labels[index] == label else WRONG)
            for index in ids[query, :SHOWN].tolist()
        ]
        rows.append(RetrievedRow(query=query, found=found))
    caption = "queries and their nearest images: blue same class, orange another"
    return retrieved(rows, pair.queries, pair.gallery, caption)
