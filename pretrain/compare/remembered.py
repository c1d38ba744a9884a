"""How well a run's bank of difficulties orders the patches of the images that it remembers."""

from pathlib import Path

import torch

from mimbench.training.learner import LAST
from mimbench.training.snapshots import read_state
from mimbench.vit.normalise import Normalisation
from pretrain.compare.quality import bank_quality
from pretrain.config import Config
from pretrain.models.autoencoder import MaskedAutoencoder
from pretrain.models.teacher import Teacher
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import EvenSubset, open_source


def remembered_quality(
    config: Config,
    folder: Path,
    model: MaskedAutoencoder,
    teacher: Teacher | None,
    images: int,
) -> dict[str, dict[str, float]]:
    """Return the quality of a bank, and of a teacher beside it, on whole training images.

    Args:
        config: The run.
        folder: Where its last state is.
        model: Its student.
        teacher: Its average.
        images: How many to look at, spread evenly.
    """
    source = open_source(config.data.name, config.data.root, config.data.split)
    if config.data.images is not None:
        source = EvenSubset(source, config.data.images)
    whole = Crops(source, DataConfig(image_size=config.data.image_size, augment="none"))
    chosen = range(0, len(source), max(1, len(source) // images))
    pixels = torch.stack([whole.plain(i) for i in chosen])
    maps = read_state(folder / "checkpoints" / LAST)["learner"]["bank"]
    found = bank_quality(
        model,
        teacher,
        maps[list(chosen)],
        Normalisation(model.spec.mean, model.spec.std).of_bytes(pixels),
        normalised=config.objective.target == "normalised",
    )
    return {
        f"{name}, training images": value
        for name, value in found.items()
        if name != "reconstruction"
    }
