"""Pretraining's crops on photographs as the world has them: every mode, down to one pixel."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.system.generators import seeded
from pretrain.config import CONFIGS, Config
from pretrain.objectives.distill.config import DistillConfig
from pretrain.objectives.distill.views import MultiCrops
from pretrain.objectives.recipes import DISTILLATION, DISTILLATION_BASE, read_recipe
from pretrain.sources.crops import Crops, DataConfig
from pretrain.sources.images import ImageSource, open_source
from tests.support.odd_images import MODES, SHAPES, odd_images

DRAWN = 2000
SIDE = 32


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    source = open_source("", odd_images(tmp_path_factory.mktemp("odd")), "train")
    # timm's reader takes no gif and no tiff
    read = [suffix for suffix in MODES.values() if suffix in {"png", "jpg"}]
    assert len(source) == len(read) * len(SHAPES)
    return source


def recipes_of(folder: Path, *skipped: Path) -> list[str]:
    return [path.stem for path in sorted(folder.glob("*.yaml")) if path not in skipped]


def different_crops() -> dict[str, DataConfig]:
    """The published recipes whose crops differ, and the gentle crop."""
    found: dict[str, DataConfig] = {}
    for name in recipes_of(CONFIGS, CONFIGS / "base.yaml"):
        config = read_recipe(name, [])
        assert isinstance(config, Config)
        data = replace(config.data, name="", root=None, image_size=SIDE)
        if data not in found.values():
            found[name] = data
    gentle = replace(next(iter(found.values())), augment="gentle")
    return {**found, "gentle": gentle}


@pytest.mark.parametrize("name", different_crops())
def test_crops_of_every_recipe_on_2000_odd_images(name: str, photographs: ImageSource) -> None:
    crops = Crops(photographs, different_crops()[name])
    flat = 0
    for number in range(DRAWN):
        with seeded(number):
            view = crops[number % len(crops)]
        assert view.shape == (3, SIDE, SIDE)
        assert view.dtype == torch.uint8
        flat += bool((view == view[:, :1, :1]).all())
    # noise is never flat, but for the pictures of one pixel
    assert flat < DRAWN / 2


@pytest.mark.parametrize("name", recipes_of(DISTILLATION, DISTILLATION_BASE)[:1])
def test_all_views_of_distillation_on_2000_odd_images(name: str, photographs: ImageSource) -> None:
    config = read_recipe(name, [])
    assert isinstance(config, DistillConfig)
    assert config.data.colour
    views = replace(config.data, name="", root=None, image_size=SIDE, local_size=16, locals=2)
    crops = MultiCrops(photographs, views)
    for number in range(DRAWN // 4):
        with seeded(number):
            found = crops[number % len(crops)]
        assert found["global"].shape == (2, 3, SIDE, SIDE)
        assert found["local"].shape == (2, 3, 16, 16)
        assert {t.dtype for t in found.values()} == {torch.uint8}


def test_every_recipe_of_distillation_has_the_same_views() -> None:
    """So that one of them stands for all above."""
    views = []
    for name in recipes_of(DISTILLATION, DISTILLATION_BASE):
        config = read_recipe(name, [])
        assert isinstance(config, DistillConfig)
        views.append(
            replace(config.data, locals=0, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25))
        )
    assert all(view == views[0] for view in views)
