"""Classification outcomes: the classes predicted for each image, over one or several draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mimbench.scores.outcomes import Outcomes, Statistic

if TYPE_CHECKING:
    from mimbench.data.lists import ImageList

SPREAD_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits(Outcomes):
    """Labels and best classes; gives `top1`, with one draw `top5`, with several `top1_sd`."""

    images: tuple[str, ...]
    labels: NDArray[np.int64]
    top5: NDArray[np.int64]
    """(images, 5) best class first; of the first draw where there are several."""
    draws: NDArray[np.int64] | None = None
    """(draws, images) the best class with each draw of the training images."""

    def __post_init__(self) -> None:
        """Refuse predictions that do not belong to the images."""
        count = len(self.images)
        if self.labels.shape != (count,) or self.top5.shape != (count, 5):
            raise ValueError(
                f"predictions of shape {self.top5.shape} and labels of shape {self.labels.shape} "
                f"for {count} images"
            )
        if self.draws is not None and (self.draws.ndim != 2 or self.draws.shape[1] != count):
            raise ValueError(f"draws of shape {self.draws.shape} for {count} images")

    @classmethod
    def of(
        cls,
        images: ImageList,
        top5: NDArray[np.int64],
        *,
        draws: NDArray[np.int64] | None = None,
    ) -> Hits:
        """Return the outcomes of an image list."""
        return cls(images=tuple(images.names), labels=images.labels, top5=top5, draws=draws)

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        found = {"images": np.array(self.images, np.str_), "labels": self.labels, "top5": self.top5}
        return found if self.draws is None else found | {"draws": self.draws}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Hits:
        """Return what `arrays` described."""
        return cls(
            images=tuple(str(name) for name in arrays["images"]),
            labels=arrays["labels"],
            top5=arrays["top5"],
            draws=arrays.get("draws"),
        )

    def right(self) -> NDArray[np.float64]:
        """Return (draws, images): 1 where the best class is the label."""
        best = self.top5[None, :, 0] if self.draws is None else self.draws
        return (best == self.labels).astype(np.float64)

    def statistics(self) -> Sequence[Statistic]:
        """Return top-1; of one draw top-5 too, of several the spread of top-1 over them."""
        right = self.right()

        def deviation(weights: np.ndarray) -> np.ndarray:
            tops = 100 * (weights @ right.T) / weights.sum(axis=1, keepdims=True)
            return tops.std(axis=1, ddof=1)

        found = [self._share("top1", right.mean(axis=0))]
        if self.draws is None:
            among = (self.top5 == self.labels[:, None]).any(axis=1)
            found.append(self._share("top5", among.astype(np.float64)))
        if len(right) > 1:
            found.append(
                Statistic(
                    metric="top1_sd",
                    images=self.images,
                    value=deviation,
                    resamples=SPREAD_RESAMPLES,
                )
            )
        return found

    def _share(self, metric: str, hits: NDArray[np.float64]) -> Statistic:
        def value(weights: np.ndarray) -> np.ndarray:
            return 100 * (weights @ hits) / weights.sum(axis=1)

        return Statistic(metric=metric, images=self.images, value=value, per_image=hits)

    def classes(self) -> Mapping[str, float]:
        """Return each class's top-1; a class is named by its images' folder."""
        hits = self.right().mean(axis=0)
        names = self._names()
        return {names[label]: 100 * float(hits[self.labels == label].mean()) for label in names}

    def taken_for(self) -> Mapping[str, Mapping[str, float]]:
        """Return for each class how many percent of its images were taken for which, over all draws."""
        best = self.top5[None, :, 0] if self.draws is None else self.draws
        names = self._names()
        found = {}
        for label, name in names.items():
            predicted, counts = np.unique(best[:, self.labels == label], return_counts=True)
            shares = 100 * counts / counts.sum()
            found[name] = {
                names.get(int(p), f"class {p}"): float(share)
                for p, share in zip(predicted, shares, strict=True)
            }
        return found

    def _names(self) -> dict[int, str]:
        """Return label -> its class's name."""
        found = {}
        for label in np.unique(self.labels):
            name = self.images[int(np.argmax(self.labels == label))]
            found[int(label)] = name.split("/")[0] if "/" in name else f"class {label}"
        return found
