"""Outcomes of a classifier on shifted images beside clean ones: both shares, and the drop between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mimbench.scores.outcomes import Outcomes, Statistic
from mimbench.scores.shares import mean_share

CLEAN = "clean: "
"""Before the names of clean images, so that no name occurs twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DropFromClean(Outcomes):
    """Which images were right; `drop` is paired where the clean images are the same ones.

    Of two different sets of images both are resampled, as one pool: the interval of `drop` then holds
    what either draw of images would move.
    """

    images: tuple[str, ...]
    predicted: NDArray[np.int64]
    """(n,) the class that was answered."""
    right: NDArray[np.float64]
    clean_images: tuple[str, ...]
    clean_right: NDArray[np.float64]
    paired: bool = False
    """The clean images are the very same ones, in the same order."""

    def __post_init__(self) -> None:
        """Refuse answers that do not belong to the images."""
        for what, images in (("right", self.images), ("clean_right", self.clean_images)):
            if getattr(self, what).shape != (len(images),):
                raise ValueError(
                    f"{what} of shape {getattr(self, what).shape} for {len(images)} images"
                )
        if self.predicted.shape != (len(self.images),):
            raise ValueError(
                f"predictions of shape {self.predicted.shape} for {len(self.images)} images"
            )
        if self.paired and self.images != self.clean_images:
            raise ValueError("a pair is one image: shifted and clean ones have other names")

    def metrics(self) -> dict[str, float]:
        """Return every metric on all images."""
        return {s.metric: s.whole() for s in self.statistics()}

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return everything as arrays."""
        return {
            "images": np.array(self.images, np.str_),
            "predicted": self.predicted,
            "right": self.right,
            "clean_images": np.array(self.clean_images, np.str_),
            "clean_right": self.clean_right,
            "paired": np.array(self.paired),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DropFromClean:
        """Return what `arrays` described."""
        return cls(
            images=tuple(map(str, arrays["images"])),
            predicted=arrays["predicted"],
            right=arrays["right"],
            clean_images=tuple(map(str, arrays["clean_images"])),
            clean_right=arrays["clean_right"],
            paired=bool(arrays["paired"]),
        )

    def statistics(self) -> Sequence[Statistic]:
        """Return top-1 on the shifted and on the clean images, and the drop from clean."""
        return [
            mean_share("top1", self.images, self.right),
            mean_share("top1_clean", self.clean_images, self.clean_right),
            self._drop(),
        ]

    def _drop(self) -> Statistic:
        if self.paired:
            return mean_share("drop", self.images, self.clean_right - self.right)
        names = (*self.images, *(CLEAN + name for name in self.clean_images))
        count = len(self.images)

        def value(weights: np.ndarray) -> np.ndarray:
            shifted, clean = weights[:, :count], weights[:, count:]
            return 100 * (
                clean @ self.clean_right / clean.sum(axis=1)
                - shifted @ self.right / shifted.sum(axis=1)
            )

        return Statistic(metric="drop", images=names, value=value)

    def classes(self) -> Mapping[str, float]:
        """Return top-1 of each folder of images."""
        folders = np.array([name.rpartition("/")[0].rpartition("/")[2] for name in self.images])
        return {
            str(folder): 100 * float(self.right[folders == folder].mean())
            for folder in np.unique(folders)
            if folder
        }
