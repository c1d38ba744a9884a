"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

from mimbench.weights import VitSpec, VitWeights, random_weights


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference tensors."""
    default = Path(__file__).parents[1].parent / "shared" / "golden"
    folder = Path(os.environ.get("MIMBENCH_GOLDEN", default))
    if not folder.is_dir():
        pytest.skip(f"no reference tensors in {folder}; set MIMBENCH_GOLDEN to their folder")
    return folder


@pytest.fixture
def tiny_spec() -> VitSpec:
    """The shape of the reference models: 64-pixel images, patch 16, width 48, depth 3."""
    return VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))


@pytest.fixture
def tiny_weights(tiny_spec: VitSpec) -> VitWeights:
    """Random weights of the tiny shape."""
    return random_weights(tiny_spec, seed=0)
