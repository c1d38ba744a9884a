"""What a retrieval run keeps: each query's own share of every metric; nan where the query does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mimbench.scores.outcomes import Outcomes, Statistic


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryScores(Outcomes):
    """For each query a number from 0 to 1; a metric is 100 times the mean over queries that have one."""

    images: tuple[str, ...]
    values: Mapping[str, np.ndarray]
    """Metric -> (queries,)."""

    def __post_init__(self) -> None:
        """Refuse scores that do not belong to the queries."""
        for metric, shares in self.values.items():
            if shares.shape != (len(self.images),):
                raise ValueError(
                    f"{metric} has shape {shares.shape} for {len(self.images)} queries"
                )

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        scores = {f"score_{metric}": shares for metric, shares in self.values.items()}
        return {"images": np.array(self.images, np.str_), **scores}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> QueryScores:
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            values={
                name.removeprefix("score_"): shares
                for name, shares in arrays.items()
                if name.startswith("score_")
            },
        )

    def metrics(self) -> dict[str, float]:
        """Return every metric that at least one query counts for."""
        return {s.metric: s.whole() for s in self.statistics()}

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean over the queries that count."""
        found = []
        for metric, scores in self.values.items():
            counts = ~np.isnan(scores)
            if counts.any():
                shares = scores[counts].astype(np.float64)
                found.append(
                    Statistic(
                        metric=metric,
                        images=tuple(n for n, c in zip(self.images, counts, strict=True) if c),
                        value=lambda weights, s=shares: 100 * (weights @ s) / weights.sum(axis=1),
                        per_image=shares,
                    )
                )
        return found
