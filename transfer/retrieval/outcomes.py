"""What a retrieval run keeps: each query's own share of every metric; nan where the query does not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from mimbench.scores.outcomes import Statistic
from mimbench.scores.shares import Shares, mean_share


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryScores(Shares):
    """For each query a number from 0 to 1; a metric is 100 times the mean over queries that have one."""

    def metrics(self) -> dict[str, float]:
        """Return every metric that at least one query counts for."""
        return {s.metric: s.whole() for s in self.statistics()}

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean over the queries that count."""
        counted = {metric: ~np.isnan(scores) for metric, scores in self.values.items()}
        return [
            mean_share(metric, tuple(compress(self.images, counts)), self.values[metric][counts])
            for metric, counts in counted.items()
            if counts.any()
        ]
