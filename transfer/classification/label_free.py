"""Label-free measures of a frozen backbone: RankMe, alpha-ReQ, intrinsic dimension, LiDAR.

What the spectrum of the features says without any label (mimbench/scores/spectra.py has the forms and
their papers). Compare checkpoints of one method, with the same choice and number of images; no value
belongs beside one from a paper or another package. RankMe and alpha-ReQ read `images` training
images, the intrinsic dimension `points` of them, LiDAR `objects` images in `views` random crops.

    python -m transfer.classification.label_free checkpoint.pth --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.label_free"))

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mimbench.data.lists import ImageList
from mimbench.features.bank import Choice
from mimbench.features.protocol import FrozenConfig, from_main
from mimbench.model import Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.spectra import alpha_req, lidar, mean_cosine, rankme, two_nn
from mimbench.system.runtime import process_group
from mimbench.task import TaskResult, Traits
from mimbench.vit.footprint import stored_features

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "rankme"
TRAITS = Traits(labelled_images=True, footprint=stored_features)
Load = Callable[[str], torch.Tensor]
"""Features of a bank by choice."""


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """How many images each measure reads, and which features."""

    choices: tuple[Choice, ...] = ("cls", "avg")
    """Each is measured; the first is the table's."""
    images_measured: int = 25_600
    """For RankMe, alpha-ReQ and the mean cosine; evenly spread over train."""
    points: int = 10_000
    """For the intrinsic dimension, which depends on their number."""
    objects: int = 1000
    views: int = 10
    """For LiDAR: random crops of each object."""

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("choices needs at least one value")
        for name in ("images_measured", "points", "objects", "views"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 2 or more")
        super().__post_init__()


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return every measure of each feature choice; nothing is trained and no label is read."""
    weights = plain_vit(weights)
    del out
    train, _ = config.images()
    with process_group(config.machine.device) as ranks:
        some = spread(train, config.images_measured)
        objects = spread(train, config.objects)
        bank = config.features(weights, some, ranks)
        crops = [
            config.features(weights, objects, ranks, view=view)
            for view in range(1, config.views + 1)
        ]
        found = from_main(lambda: _measure(bank.load, [c.load for c in crops], config), ranks)
    return TaskResult(
        metrics=found,
        notes={
            "images": len(some),
            "points": min(config.points, len(some)),
            "objects": len(objects),
            "views": config.views,
            "comparable": "with the same measure of other checkpoints in this table only",
        },
    )


def spread(images: ImageList, count: int) -> ImageList:
    """Return at most `count` images, evenly spread over the list."""
    if count >= len(images):
        return images
    return images.subset(np.linspace(0, len(images) - 1, count).astype(np.int64))


def _measure(load: Load, crops: Sequence[Load], config: Config) -> dict[str, float]:
    found: dict[str, float] = {}
    for choice in config.choices:
        features = load(choice)
        at = np.linspace(0, len(features) - 1, min(config.points, len(features))).astype(np.int64)
        measured = {
            "rankme": rankme(features),
            "lidar": lidar(torch.stack([crop(choice) for crop in crops], dim=1)),
            "two_nn": two_nn(features[torch.from_numpy(at)]),
            "mean_cosine": mean_cosine(features),
        }
        decay = alpha_req(features)
        measured |= {"alpha": decay.alpha, "alpha_r2": decay.r2}
        found |= {f"{choice}_{name}": value for name, value in measured.items()}
        if choice == config.choices[0]:
            found |= measured
    return found
