"""Outcomes of pixel labelling: each image's pixel counts by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.scores.confidence import mean_iou
from mimbench.scores.outcomes import Outcomes, Statistic

PARTS = ("intersect", "union", "predicted", "labelled")
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Confusion(Outcomes):
    """Pixel counts (images, classes) of what agrees, either, predicted and labelled; gives `miou`."""

    images: tuple[str, ...]
    intersect: Counts
    union: Counts
    predicted: Counts
    labelled: Counts
    suffix: str = ""
    """Behind the metric's name, where a run tests in several ways: `miou_ms`."""

    def __post_init__(self) -> None:
        """Refuse counts that do not belong to the images."""
        shapes = {part: getattr(self, part).shape for part in PARTS}
        if len(set(shapes.values())) > 1 or len(self.intersect) != len(self.images):
            raise ValueError(f"counts of shapes {shapes} for {len(self.images)} images")

    @classmethod
    def of(cls, images: Sequence[str], counts: Counts) -> Confusion:
        """Return the outcomes of counts (images, 4, classes) in the order of `PARTS`."""
        intersect, union, predicted, labelled = (counts[:, i] for i in range(len(PARTS)))
        return cls(
            images=tuple(images),
            intersect=intersect,
            union=union,
            predicted=predicted,
            labelled=labelled,
        )

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        names = {"images": np.array(self.images, np.str_), "suffix": np.array(self.suffix, np.str_)}
        return names | {part: getattr(self, part) for part in PARTS}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Confusion:
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            suffix=str(arrays.get("suffix", "")),
            **{part: arrays[part] for part in PARTS},
        )

    def statistics(self) -> Sequence[Statistic]:
        """Return the mean IoU over the classes that are labelled anywhere."""
        value = mean_iou(self.intersect, self.union, self.labelled)
        return [Statistic(metric=f"miou{self.suffix}", images=self.images, value=value)]

    def classes(self) -> Mapping[str, float]:
        """Return each labelled class's IoU; classes have numbers only, from 1."""
        both, either, labelled = (
            x.sum(axis=0) for x in (self.intersect, self.union, self.labelled)
        )
        return {
            f"class {i + 1}": 100 * float(both[i] / either[i]) for i in np.flatnonzero(labelled)
        }
