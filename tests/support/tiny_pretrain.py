"""A pretraining run of a tiny network on noise, for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from pretrain.config import Config, read_config
from pretrain.masks import MaskInput
from pretrain.objectives.learner import Pretraining

NETWORK = (
    "encoder.width=24",
    "encoder.heads=2",
    "decoder.width=16",
    "decoder.depth=1",
    "decoder.heads=2",
    "data.image_size=32",
    "machine.device=cpu",
)
"""What makes any recipe small; the encoder's depth and patch are the test's."""


def noisy_images(root: Path, count: int, suffix: str = ".jpg") -> Path:
    """Write noise into the two classes of a training folder, in turns; return the root."""
    dice = np.random.default_rng(0)
    for i in range(count):
        path = root / "train" / "ab"[i % 2] / f"{i:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root


TINY = [
    *NETWORK,
    "encoder.patch=8",
    "encoder.depth=2",
    "data.root=/nowhere",
    "training.batch=4",
]


def tiny(*overrides: str) -> Config:
    return read_config("hpm_vit_base_16", [*TINY, "training.precision=fp32", *overrides])


def learner(*overrides: str) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(tiny(*overrides), torch.device("cpu"), out=None)  # pyright: ignore[reportArgumentType]


def step_info(epoch: int = 150, *, first: int = 0, batch: int = 4) -> StepInfo:
    return StepInfo(step=10 * epoch, steps_per_epoch=10, epochs=200, batch=batch, first=first)


def images(count: int = 4, seed: int = 0) -> Batch:
    data = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Batch(torch.arange(count), data, ())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(
    batch: int, difficulty: Tensor | None = None, grid: tuple[int, int] = (14, 14), **more: Any
) -> MaskInput:
    return MaskInput(
        batch=batch, grid=grid, device=torch.device("cpu"), difficulty=difficulty, **more
    )


def scored(b: int = 3, m: int = 12) -> tuple[Tensor, Tensor]:
    """Predicted difficulties and true losses of some hidden patches, both at random."""
    return torch.randn(b, m, generator=rng(1)), torch.rand(b, m, generator=rng(2))
