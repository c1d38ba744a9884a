"""A distillation run of a tiny network, for tests."""

from pathlib import Path

import torch

from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from pretrain.objectives.distill.config import DistillConfig
from pretrain.objectives.distill.learner import Distillation
from pretrain.objectives.recipes import read_recipe

TINY = [
    "encoder.patch=8",
    "encoder.width=24",
    "encoder.depth=2",
    "encoder.heads=2",
    "head.outputs=12",
    "head.hidden=16",
    "head.bottleneck=8",
    "data.image_size=32",
    "data.local_size=16",
    "data.locals=3",
    "data.root=/nowhere",
    "training.batch=4",
    "training.epochs=10",
    "training.precision=fp32",
    "machine.device=cpu",
]


def tiny(*overrides: str, recipe: str = "attmask_vit_small_16_100") -> DistillConfig:
    config = read_recipe(recipe, [*TINY, *overrides])
    assert isinstance(config, DistillConfig)
    return config


def learner(*overrides: str) -> Distillation:
    torch.manual_seed(0)
    return Distillation(tiny(*overrides), torch.device("cpu"), Path("unused"))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4) -> Batch:
    source = rng(3)
    data = {
        "global": torch.randint(0, 256, (count, 2, 3, 32, 32), dtype=torch.uint8, generator=source),
        "local": torch.randint(0, 256, (count, 3, 3, 16, 16), dtype=torch.uint8, generator=source),
    }
    return Batch(torch.arange(count), data, ())


def at(step: int = 20) -> StepInfo:
    return StepInfo(step=step, steps_per_epoch=5, epochs=10, batch=4)
