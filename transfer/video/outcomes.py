"""What a run keeps: each object's measures, and which sequence it is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mimbench.scores.outcomes import Outcomes, Statistic

COLUMNS = ("j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackedObjects(Outcomes):
    """Means over all objects of all sequences; whole sequences are resampled, as their objects are alike."""

    images: tuple[str, ...]
    """Sequences."""
    sequence: np.ndarray
    """(objects,) place of each object's sequence."""
    scores: np.ndarray
    """(objects, 6) in the order of `COLUMNS`, from 0 to 1."""

    def __post_init__(self) -> None:
        """Refuse scores that do not belong to the sequences."""
        if self.scores.shape != (len(self.sequence), len(COLUMNS)):
            raise ValueError(f"scores of shape {self.scores.shape} of {len(self.sequence)} objects")
        if len(self.sequence) and not 0 <= self.sequence.min() <= self.sequence.max() < len(
            self.images
        ):
            raise ValueError(f"an object of a sequence beyond the {len(self.images)}")

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        names = np.array(self.images, np.str_)
        return {"images": names, "sequence": self.sequence, "scores": self.scores}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TrackedObjects:
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            sequence=arrays["sequence"],
            scores=arrays["scores"],
        )

    def metrics(self) -> dict[str, float]:
        """Return every metric in percent."""
        return {s.metric: s.whole() for s in self.statistics()}

    def statistics(self) -> Sequence[Statistic]:
        """Return J&F, its halves, and how they hold over a sequence's length."""
        both = self.scores[:, [0, 3]].mean(axis=1, keepdims=True)
        values = np.concatenate([both, self.scores], axis=1)
        # sums and counts by sequence: a sequence that is drawn twice brings its objects twice
        sums = np.zeros((len(self.images), values.shape[1]))
        np.add.at(sums, self.sequence, values)
        counts = np.bincount(self.sequence, minlength=len(self.images)).astype(np.float64)
        return [
            Statistic(
                metric=name,
                images=self.images,
                value=lambda w, s=sums[:, i]: 100 * (w @ s) / np.maximum(w @ counts, 1),
            )
            for i, name in enumerate(("jf", *COLUMNS))
        ]

    def classes(self) -> Mapping[str, float]:
        """Return each sequence's J&F."""
        both = 100 * self.scores[:, [0, 3]].mean(axis=1)
        return {
            name: float(both[self.sequence == i].mean())
            for i, name in enumerate(self.images)
            if (self.sequence == i).any()
        }
