"""Scores: mmseg's IoU on whole-number counts, kept for each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mimbench.sample.ade import FIRST_DIGIT_ID, TEXTURE_IDS, class_names
from mimbench.scores.confusion import PARTS, Confusion
from transfer.segmentation.framework import METRICS, IoUMetric


@dataclass(frozen=True, kw_only=True)
class Score:
    """The figures of one evaluation, in percent."""

    miou: float
    """Mean over the classes that occur in the ground truth."""
    macc: float
    aacc: float
    averaged: int
    """Classes that `miou` is a mean over."""
    miou_mmseg: float
    """mmseg's own mean: it also counts, as 0, classes that are only predicted."""
    iou: Mapping[str, float]
    acc: Mapping[str, float]

    def metrics(self, suffix: str = "") -> dict[str, float]:
        """Return the figures under the names that a table shows."""
        return {
            f"miou{suffix}": self.miou,
            f"aacc{suffix}": self.aacc,
            f"macc{suffix}": self.macc,
            f"miou_mmseg{suffix}": self.miou_mmseg,
            f"classes_averaged{suffix}": float(self.averaged),
        }


def score(confusion: Confusion, names: Sequence[str]) -> Score:
    """Return mIoU, mean and pixel accuracy from counts, by mmseg's own formulas in float64."""
    totals = [torch.from_numpy(getattr(confusion, name).sum(axis=0)).double() for name in PARTS]
    found = IoUMetric.total_area_to_metrics(*totals, metrics=["mIoU"])
    occurs = totals[3].numpy() > 0
    iou, acc = 100 * found["IoU"], 100 * found["Acc"]
    named = [(name, i) for i, name in enumerate(names) if occurs[i]]
    return Score(
        miou=float(iou[occurs].mean()) if occurs.any() else float("nan"),
        macc=float(acc[occurs].mean()) if occurs.any() else float("nan"),
        aacc=100 * float(found["aAcc"]),
        averaged=int(occurs.sum()),
        miou_mmseg=float(np.nanmean(iou)),
        iou={_unique(names, i): float(iou[i]) for _, i in named},
        acc={_unique(names, i): float(acc[i]) for _, i in named},
    )


def _unique(names: Sequence[str], index: int) -> str:
    """Return a class's name, with its number where another class has the same one."""
    name = names[index]
    return name if names.count(name) == 1 else f"{name} ({index + 1})"


def sample_parts(result: Score, names: Sequence[str]) -> dict[str, float]:
    """Return mIoU of textures and of digits apart, on the sample data; nothing on other data."""
    ours, first = class_names(), FIRST_DIGIT_ID - 1
    # joined digits go by another name at the first one's place
    if (*names[:first], *names[first + 1 :]) != (*ours[:first], *ours[first + 1 :]):
        return {}
    groups = {
        "miou_stuff": [names[i - 1] for i in TEXTURE_IDS],
        "miou_things": list(names[first:]),
    }
    out = {}
    for key, members in groups.items():
        values = [result.iou[name] for name in members if name in result.iou]
        if values:
            out[key] = float(np.mean(values))
    return out


@METRICS.register_module()
class ConfusionMetric(IoUMetric):
    """mmseg's IoUMetric that keeps each image's counts, and sums them as whole numbers.

    In float32, as mmseg sums them, a class with more than 16.7 million pixels loses some.
    """

    confusion: Confusion | None = None

    def __init__(self, ignore_index: int = 255):
        # gathered through the process group: nodes need no shared temporary folder
        super().__init__(ignore_index=ignore_index, collect_device="gpu")

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Any]) -> None:
        """Count the pixels of each image of a batch, and keep the image's path beside them."""
        before = len(self.results)
        super().process(dict(data_batch), data_samples)
        for i, sample in enumerate(data_samples, start=before):
            counts = torch.stack(self.results[i]).to(torch.int64)
            self.results[i] = (str(sample["img_path"]), counts)

    def compute_metrics(self, results: list[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Return mIoU, pixel and mean accuracy; the counts stay in `confusion`."""
        counts = torch.stack([part for _, part in results]).numpy()
        self.confusion = Confusion.of([name for name, _ in results], counts)
        assert self.dataset_meta is not None
        return score(self.confusion, self.dataset_meta["classes"]).metrics()
