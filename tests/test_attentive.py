"""Attentive probing as a task: which tokens it reads, what chooses, and a toy that only it can solve."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.system.config import from_mapping
from mimbench.task import Machine
from mimbench.training.optim import Lars
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.classification import attentive, label_free, layers
from transfer.classification.attentive import Config
from transfer.classification.attentive_probe import AttentiveProbe, Choice
from transfer.classification.tokens import token_rule
from transfer.classification.training import Crop

CPU = Machine(device="cpu", workers=0, max_batch=64)
SPEC = VitSpec(embed_dim=64, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Noise with one patch somewhere whose colour is the class."""
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    for split, count in (("train", 60), ("val", 20)):
        for label, colour in enumerate(colours):
            folder = tmp_path / f"toy/{split}/{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([label, i, split == "train"])
                pixels = rng.integers(90, 160, size=(32, 32, 3)).astype(np.uint8)
                row, column = 8 * rng.integers(0, 4, size=2)
                pixels[row : row + 8, column : column + 8] = colour
                Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return tmp_path / "toy"


def without_mixing(weights: VitWeights) -> VitWeights:
    """Return weights whose blocks do nothing: each token says what its own patch holds."""
    tensors = {
        name: torch.zeros_like(t) if name.startswith(("blocks", "pos_embed")) else t
        for name, t in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


def config(data: Path, **changes: Any) -> Config:
    fields = {
        "image_size": 32,
        "resize": None,
        "queries": 4,
        "learning_rates": (3.0,),
        "epochs": 12,
    }
    fields |= {"batch": 32, "norm_batch": 32, "warmup": 1, "crop": None, "holdout": 0.2}
    return Config(data=data, machine=CPU, **{**fields, **changes})


def test_the_probe_reads_what_the_class_token_does_not_know(toy: Path, tmp_path: Path) -> None:
    weights = without_mixing(random_weights(SPEC, 0))
    pixels = torch.rand(5, 3, 32, 32)
    cls = build_backbone(weights)(pixels).cls
    torch.testing.assert_close(cls, cls[:1].expand_as(cls))
    result = attentive.run(weights, config(toy), tmp_path / "out")
    assert result.metrics["top1"] > 90
    assert result.metrics["top1_best_on_val"] >= result.metrics["top1"]
    statistic, *_ = result.outcomes[0].statistics()
    assert statistic.whole() == pytest.approx(result.metrics["top1"])
    assert result.notes["tokens"] == "patches of the last block, before the final norm"
    assert result.notes["storage_effect"]["predictions_changed"] <= 1
    # a finished run reads its own state again
    again = attentive.run(weights, config(toy), tmp_path / "out")
    assert again.metrics == result.metrics


@pytest.mark.parametrize("kind", ["capi", "vjepa", "aim"])
def test_the_other_heads_are_choices_of_the_same_task(toy: Path, tmp_path: Path, kind: Any) -> None:
    more = {"probe": kind, "optimiser": "adamw", "learning_rates": (0.01, 0.03), "epochs": 2}
    more |= {"weight_decays": (0.0, 0.05), "crop": Crop(scale=(0.8, 1.0)), "norm": "after"}
    result = attentive.run(random_weights(SPEC, 0), config(toy, **more), tmp_path / "out")
    assert result.notes["heads"] == 4
    assert 0 <= result.metrics["top1"] <= 100
    assert "after the final norm" in result.notes["tokens"]


def test_iterations_end_a_run_within_an_epoch(toy: Path, tmp_path: Path) -> None:
    settings = config(toy, iterations=6, warmup=2)
    result = attentive.run(random_weights(SPEC, 0), settings, tmp_path / "out")
    assert "top1" in result.metrics


@pytest.mark.parametrize(
    ("family", "pool", "class_token", "normed"),
    [
        ("mae", "cls", False, False),
        ("hpm", "cls", False, False),
        ("beit", "cls", False, False),
        ("dino", "cls", True, False),
        ("ibot", "cls", True, False),
        ("mocov3", "cls", True, False),
        ("dinov2", "cls", True, True),
        ("dinov3", "cls", True, True),
        ("clip", "cls", True, True),
        ("timm", "avg", False, False),
    ],
)
def test_tokens_follow_the_pretraining_objective(
    family: str, pool: Any, class_token: bool, normed: bool
) -> None:
    weights = replace(random_weights(replace(SPEC, pool=pool), 0), format=family)
    rule = token_rule(weights)
    assert (rule.class_token, rule.normed) == (class_token, normed)
    asked = token_rule(weights, "patches", "after")
    assert (asked.class_token, asked.normed) == (False, True)


def test_our_own_files_remember_where_they_came_from() -> None:
    weights = random_weights(SPEC, 0)
    exported = replace(weights, format="mimbench", notes=("written from dino abcdef012345",))
    assert token_rule(exported).class_token
    ours = replace(weights, format="mimbench", notes=("written from mimbench-pretrain abc",))
    assert not token_rule(ours).class_token


def test_held_out_images_choose_and_val_does_not() -> None:
    history = {
        "1": {"held": [60.0, 70.0], "val": [90.0, 50.0]},
        "2": {"held": [70.0, 65.0], "val": [40.0, 95.0]},
    }
    probe: Any = SimpleNamespace(history=history)
    assert AttentiveProbe.choice(probe, "held") == Choice("1", 1)
    assert AttentiveProbe.choice(probe, "val") == Choice("2", 1)


def test_lars_scales_the_queries() -> None:
    queries = torch.nn.Parameter(torch.full((1, 4, 8), 2.0))
    optimizer = Lars([queries], lr=1.0)
    queries.grad = torch.full_like(queries, 100.0)
    optimizer.step()
    # trust 0.001 x |queries| / |gradient| x gradient
    torch.testing.assert_close(queries.detach(), torch.full((1, 4, 8), 2.0 - 0.002))


def test_every_attentive_entry_is_a_configuration() -> None:
    manifest = load_manifest()
    for name in ("in-attn-ep", "in-attn-capi", "in-attn-vjepa"):
        for profile in manifest.benchmarks[name].profiles:
            _, found = manifest.recipe(name, profile)
            from_mapping(Config, {**found, "data": "."}, name)
    capi = from_mapping(Config, {**manifest.recipe("in-attn-capi", "paper")[1], "data": "."}, "")
    assert len(capi.heads) == 30


def test_published_rows_are_all_there_with_their_source() -> None:
    rows = [r for r in load_manifest().references if r.protocol == "in-attn-ep"]
    assert len(rows) == 37
    assert all("efficient-probing" in r.source and "last" in r.note for r in rows)
    by_name = {(r.method, r.model): r.value for r in rows}
    assert by_name["MAE", "B/16"] == 75.46
    assert by_name["SimMIM", "B/16"] == 64.86
    assert by_name["MaskFeat", "L/16"] == 69.63


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="holdout 0 is not between"):
        Config(data=Path(), holdout=0)
    with pytest.raises(ValueError, match="need at least one value"):
        Config(data=Path(), learning_rates=())


def test_the_layer_sweep_finds_the_block_before_the_damage(toy: Path, tmp_path: Path) -> None:
    weights = without_mixing(random_weights(SPEC, 0))
    # the second block adds the same large vector to every token: nothing of the patch is left
    tensors = dict(weights.tensors)
    tensors["blocks.1.mlp.fc2.bias"] = 1e9 * torch.randn(
        64, generator=torch.Generator().manual_seed(0)
    )
    settings = layers.Config(
        data=toy, image_size=32, resize=None, parts=("avg",), k=5, machine=CPU, holdout=0.2
    )
    result = layers.run(replace(weights, tensors=tensors), settings, tmp_path)
    assert result.metrics["block"] == 1
    assert result.metrics["logreg_block"] == 1
    assert result.metrics["top1"] > result.metrics["top1_last"] + 20
    assert list(result.figures[0].values) == ["1", "2"]
    statistic, *_ = result.outcomes[0].statistics()
    assert statistic.whole() == pytest.approx(result.metrics["top1"])


def test_label_free_measures_read_no_label(toy: Path, tmp_path: Path) -> None:
    settings = label_free.Config(
        data=toy,
        image_size=32,
        resize=None,
        images_measured=120,
        points=100,
        objects=30,
        views=3,
        machine=CPU,
    )
    found = label_free.run(random_weights(SPEC, 0), settings, tmp_path)
    assert found.metrics["rankme"] == found.metrics["cls_rankme"]
    assert set(found.metrics) >= {"lidar", "alpha", "two_nn", "mean_cosine", "avg_rankme"}
    assert found.notes["images"] == 120
    assert found.notes["objects"] == 30
