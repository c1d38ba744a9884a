"""Fixtures that several tests share."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimbench.sample import generate
from mimbench.vit.weights import VitSpec, VitWeights, random_weights


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of reference tensors: $MIMBENCH_GOLDEN's, and ours where it holds none of a name."""
    own = Path(__file__).parent / "golden"
    chosen = os.environ.get("MIMBENCH_GOLDEN")
    if not chosen:
        return own
    if not (Path(chosen) / "README.md").is_file():
        pytest.fail(f"no reference tensors in {chosen}; unset MIMBENCH_GOLDEN or correct it")
    both = tmp_path_factory.mktemp("golden")
    for path in {
        p.name: p.resolve() for folder in (own, Path(chosen)) for p in folder.iterdir()
    }.values():
        (both / path.name).symlink_to(path)
    return both


@pytest.fixture
def tiny_spec() -> VitSpec:
    """The shape of the reference models: 64-pixel images, patch 16, width 48, depth 3."""
    return VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))


@pytest.fixture
def tiny_weights(tiny_spec: VitSpec) -> VitWeights:
    """Random weights of the tiny shape."""
    return random_weights(tiny_spec, seed=0)


@pytest.fixture
def painted_images() -> Callable[..., Path]:
    """Makes an image folder of small noisy pictures whose class is the colour of a square."""

    def make(
        root: Path, *, classes: int = 4, train: int = 12, val: int = 6, size: int = 32
    ) -> Path:
        rng = np.random.default_rng(0)
        half = size // 2
        for split, count in (("train", train), ("val", val)):
            for label in range(classes):
                folder = root / split / f"class_{label}"
                folder.mkdir(parents=True)
                colour = [(label + 1) >> channel & 1 for channel in range(3)]
                for i in range(count):
                    image = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
                    top, left = rng.integers(0, half, 2)
                    square = image[top : top + half, left : left + half]
                    square += np.array(colour, dtype=np.uint8) * np.uint8(150)
                    Image.fromarray(image).save(folder / f"{split}_{label}_{i:03d}.png")
        return root

    return make


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Path]:
    """Makes the sample with so many training and validation scenes, once; nobody writes into it."""

    @cache
    def make(train: int, val: int) -> Path:
        root = tmp_path_factory.mktemp("sample") / "s"
        generate(root, train_per_class=1, val_per_class=1, train_scenes=train, val_scenes=val)
        return root

    return make


@pytest.fixture
def small_spec() -> VitSpec:
    """A very small model: 32-pixel images, patch 8, width 32, depth 4."""
    return VitSpec(embed_dim=32, depth=4, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))
