"""What a run on another set keeps, and how the set's rule scores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.scores.outcomes import Outcomes, Statistic
from mimbench.scores.shares import mean_share

TAG_RESAMPLES = 200
RECALLS = np.linspace(0, 1, 11)


@dataclass(frozen=True, kw_only=True, eq=False)
class SetHits(Outcomes):
    """Labels and the best class of each image; `score` is top-1, or its mean over the classes."""

    images: tuple[str, ...]
    labels: NDArray[np.int64]
    best: NDArray[np.int64]
    per_class: bool

    def __post_init__(self) -> None:
        """Refuse predictions that do not belong to the images."""
        if self.labels.shape != (len(self.images),) or self.best.shape != self.labels.shape:
            raise ValueError(
                f"{self.best.shape} answers and {self.labels.shape} labels of {len(self.images)} images"
            )

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        return {
            "images": np.array(self.images, np.str_),
            "labels": self.labels,
            "best": self.best,
            "per_class": np.array(self.per_class),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SetHits:
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            labels=arrays["labels"],
            best=arrays["best"],
            per_class=bool(arrays["per_class"]),
        )

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Return the score (b,) in percent under image weights (b, images)."""
        hits = (self.best == self.labels).astype(np.float64)
        if not self.per_class:
            return 100 * (weights @ hits) / weights.sum(axis=1)
        order = np.argsort(self.labels, kind="stable")
        starts = np.unique(self.labels[order], return_index=True)[1]
        right = np.add.reduceat(weights[:, order] * hits[order], starts, axis=1)
        seen = np.add.reduceat(weights[:, order], starts, axis=1)
        # a class without a test image in a resample does not count there
        shares = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
        return 100 * shares.sum(axis=1) / (seen > 0).sum(axis=1)

    def statistics(self) -> Sequence[Statistic]:
        """Return the score by the set's rule, and top-1."""
        hits = (self.best == self.labels).astype(np.float64)
        top1 = mean_share("top1", self.images, hits)
        shares = None if self.per_class else hits
        score = Statistic(metric="score", images=self.images, value=self.score, per_image=shares)
        return [score, top1]


@dataclass(frozen=True, kw_only=True, eq=False)
class SetTags(Outcomes):
    """Scores of every class for every image; `score` is VOC2007's 11-point mean average precision."""

    images: tuple[str, ...]
    tags: NDArray[np.int8]
    """(images, classes) 1 shown, 0 not, -1 left out of the class's score."""
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse scores that do not belong to the images."""
        if self.tags.shape != self.scores.shape or len(self.tags) != len(self.images):
            raise ValueError(f"scores of shape {self.scores.shape} for tags of {self.tags.shape}")

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        names = np.array(self.images, np.str_)
        return {"images": names, "tags": self.tags, "scores": self.scores}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SetTags:
        """Return what `arrays` described."""
        names = tuple(str(name) for name in arrays["images"])
        return cls(images=names, tags=arrays["tags"], scores=arrays["scores"])

    def score(self, weights: np.ndarray) -> np.ndarray:
        """Return the mean over classes (b,) in percent."""
        found = [
            eleven_points(self.scores[:, c], self.tags[:, c], weights)
            for c in range(self.tags.shape[1])
            if (self.tags[:, c] == 1).any()
        ]
        return 100 * np.mean(found, axis=0)

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean average precision."""
        return [
            Statistic(metric="score", images=self.images, value=self.score, resamples=TAG_RESAMPLES)
        ]


def eleven_points(
    scores: NDArray[np.float32], tags: NDArray[np.int8], weights: np.ndarray
) -> np.ndarray:
    """Return VOC2007's average precision (b,): the mean of the best precision at recalls 0, 0.1 ... 1."""
    counts = tags >= 0
    order = np.argsort(-scores[counts], kind="stable")
    drawn, shown = weights[:, counts][:, order], (tags[counts] == 1)[order]
    hits = np.cumsum(drawn * shown, axis=1)
    total = hits[:, -1:]
    precision = hits / np.maximum(np.cumsum(drawn, axis=1), 1e-12)
    recall = hits / np.maximum(total, 1e-12)
    # the best precision at this recall or above
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros(len(weights))
    for point in RECALLS:
        place = (recall < point - 1e-9).sum(axis=1)
        inside = place < recall.shape[1]
        at = np.minimum(place, recall.shape[1] - 1)
        found += np.where(inside, best[np.arange(len(weights)), at], 0.0)
    return found / len(RECALLS)


Kept = SetHits | SetTags


def drawn(part: Kept, weights: np.ndarray) -> np.ndarray:
    """Return a set's score (b,), nan where none of its images was drawn."""
    empty = weights.sum(axis=1) == 0
    weights = np.where(empty[:, None], 1.0, weights)
    return np.where(empty, np.nan, part.score(weights))


KINDS = {"SetHits": SetHits, "SetTags": SetTags}


@dataclass(frozen=True, kw_only=True, eq=False)
class SetMean(Outcomes):
    """Outcomes of several sets; `mean` is the plain mean of their scores."""

    parts: Mapping[str, Kept]

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays, each under its set's name."""
        found: dict[str, np.ndarray] = {}
        for name, part in self.parts.items():
            found[f"{name}.kind"] = np.array(type(part).__name__)
            found |= {f"{name}.{key}": value for key, value in part.arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SetMean:
        """Return what `arrays` described."""
        parts: dict[str, Kept] = {}
        for key in arrays:
            name, _, what = key.rpartition(".")
            if what == "kind":
                mine = {
                    k.removeprefix(f"{name}."): v
                    for k, v in arrays.items()
                    if k.startswith(f"{name}.")
                }
                parts[name] = KINDS[str(arrays[key])].from_arrays(mine)
        return cls(parts=parts)

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean over the sets, and each set's own score."""
        images = tuple(f"{n}/{image}" for n, part in self.parts.items() for image in part.images)
        edges = np.cumsum([0, *(len(part.images) for part in self.parts.values())])
        places = {n: slice(edges[i], edges[i + 1]) for i, n in enumerate(self.parts)}

        def mean(weights: np.ndarray) -> np.ndarray:
            scores = [drawn(part, weights[:, places[n]]) for n, part in self.parts.items()]
            # a small set may be missing from a resample
            return np.nanmean(scores, axis=0)

        found = [Statistic(metric="mean", images=images, value=mean, resamples=TAG_RESAMPLES)]
        for name, part in self.parts.items():
            own = part.statistics()[0]
            found.append(
                Statistic(
                    metric=name,
                    images=tuple(f"{name}/{image}" for image in own.images),
                    value=own.value,
                    resamples=own.resamples,
                    per_image=own.per_image,
                )
            )
        return found
