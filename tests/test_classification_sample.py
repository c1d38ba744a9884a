"""Probe, fine-tune and low-shot on the sample data: far above chance, and at chance for shuffled labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mimbench.data.lists import ImageList
from mimbench.sample import generate
from mimbench.system.config import from_mapping
from mimbench.system.runtime import Ranks
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.classification import finetune, linear, lowshot
from transfer.classification.finetune import train_classifier
from transfer.classification.linear import train_probe

CHANCE, DEVIATION = 10.0, 1.5
"""Of ten classes; a standard deviation on 400 images that are right one time in ten."""
PLAIN = {
    "image_size": 32,
    "resize": None,
    "machine": {"device": "cpu", "workers": 0, "max_batch": 64},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = generate(
        tmp_path_factory.mktemp("sample"),
        train_per_class=50,
        val_per_class=40,
        train_scenes=1,
        val_scenes=1,
    )
    return root / "classification"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights() -> VitWeights:
    """A backbone without any training, of the demo's shape."""
    spec = VitSpec(embed_dim=96, depth=4, num_heads=3, mlp_dim=384, patch_size=8, grid=(4, 4))
    return random_weights(spec, 0)


def probing(data: Path) -> linear.Config:
    own = {
        "choices": ["avg"], "learning_rates": [400.0], "batch": 50, "norm_batch": 50,
        "epochs": 12, "warmup": 1, "crop": {"kind": "byol", "scale": [0.9, 1.0], "flip": 0.0},
    }  # fmt: skip
    return from_mapping(linear.Config, {**PLAIN, **own, "data": str(data)})


def tuning(data: Path, **changes: Any) -> finetune.Config:
    own = {
        "recipe": "mae", "batch": 50, "epochs": 9, "warmup": 1, "lr": 1e-2, "layer_decay": 0.85,
        "drop_path": 0.0, "precision": "fp32", "eval_every": 9,
        "augment": {
            "randaugment": None, "scale": [0.9, 1.0], "flip": 0.0, "erase": 0.0,
            "mixup": 0.0, "cutmix": 0.0,
        },
    }  # fmt: skip
    return from_mapping(finetune.Config, {**PLAIN, **own, "data": str(data), **changes})


def shuffled(images: ImageList) -> ImageList:
    return images.relabel(np.random.default_rng(0).permutation(images.labels))


def test_a_probe_by_maes_protocol(data: Path, weights: VitWeights, tmp_path: Path):
    assert probing(data).optimiser == "lars"
    assert probing(data).batch_norm
    metrics = linear.run(weights, probing(data), tmp_path / "out").metrics
    # 29 when written
    assert metrics["top1"] > CHANCE + 8 * DEVIATION


def test_a_fine_tune(data: Path, weights: VitWeights, tmp_path: Path):
    metrics = finetune.run(weights, tuning(data), tmp_path / "out").metrics
    # 47 when written
    assert metrics["top1"] > CHANCE + 15 * DEVIATION


def test_few_labels(data: Path, weights: VitWeights, tmp_path: Path):
    settings = from_mapping(
        lowshot.Config,
        {**PLAIN, "data": str(data), "choice": "avg", "per_class": 20, "draws": 2,
         "methods": ["logreg", "knn"]},
    )  # fmt: skip
    metrics = lowshot.run(weights, settings, tmp_path / "out").metrics
    assert metrics["logreg_top1"] > CHANCE + 6 * DEVIATION
    assert metrics["knn_top1"] > CHANCE + 2 * DEVIATION


Train = Callable[[VitWeights, ImageList, ImageList, Path, Path], dict[str, float]]


def by_probe(w: VitWeights, train: ImageList, val: ImageList, data: Path, out: Path):
    return train_probe(w, train, val, replace(probing(data), epochs=4), out, Ranks()).metrics


def by_fine_tune(w: VitWeights, train: ImageList, val: ImageList, data: Path, out: Path):
    return train_classifier(w, train, val, tuning(data, epochs=3), out, Ranks()).metrics


@pytest.mark.parametrize("train", [by_probe, by_fine_tune])
def test_shuffled_labels_give_chance(train: Train, data: Path, weights: VitWeights, tmp_path: Path):
    lists = probing(data).images()
    metrics = train(weights, shuffled(lists[0]), shuffled(lists[1]), data, tmp_path / "out")
    assert abs(metrics["top1"] - CHANCE) < 4 * DEVIATION
