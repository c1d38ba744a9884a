"""Fine-tuning under a linear decoder: two learning rates, decay on everything, evenly spread windows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmseg")

from mmengine.optim import build_optim_wrapper

from mimbench.system.runtime import Ranks
from mimbench.vit.weights import random_weights
from tests.support.segmentation_runs import CPU, SPEC, WEIGHTS
from transfer.segmentation import finetune_linear
from transfer.segmentation.data import open_source
from transfer.segmentation.finetune_linear import Config, model_recipe
from transfer.segmentation.prepare import build_model, set_up
from transfer.segmentation.windows import starts


@pytest.fixture(scope="module")
def ade(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "ade"


def config(ade: Path, **fields: Any) -> Config:
    short = {"crop": (64, 64), "scale": (256, 64), "iterations": 3, "batch": 4, "evaluate_every": 3}
    return Config(data=ade, **{**short, "precision": "fp32", "machine": CPU, **fields})


@pytest.mark.parametrize(
    ("length", "window", "want"),
    [(512, 512, [0]), (400, 512, [0]), (683, 512, [0, 171]), (1100, 512, [0, 294, 588])],
)
def test_windows_are_few_and_evenly_spread(length: int, window: int, want: list[int]) -> None:
    found = starts(length, window)
    assert found == want
    covered = {p for s in found for p in range(s, min(s + window, length))}
    assert len(covered) == length


def test_head_and_encoder_have_their_own_rates_and_everything_decays(ade: Path) -> None:
    settings = config(ade)
    setup = set_up(SPEC, settings, model_recipe(SPEC, settings), Ranks(), open_source(settings))
    optimizer = build_optim_wrapper(build_model(setup), setup.cfg.optim_wrapper).optimizer
    rates = {round(g["lr"], 9) for g in optimizer.param_groups}
    assert rates == {1e-4, 1e-5}
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.05}
    heads = [g for g in optimizer.param_groups if g["lr"] == 1e-4]
    assert sum(p.numel() for g in heads for p in g["params"]) == 150 * SPEC.embed_dim + 150


def test_a_run_trains_the_backbone_and_scores(ade: Path, tmp_path: Path) -> None:
    result = finetune_linear.run(WEIGHTS, config(ade, encoder_lr=1e-3), tmp_path)
    assert 0 <= result.metrics["miou"] <= 100
    assert result.outcomes
    from safetensors.torch import load_file

    trained = load_file(tmp_path / "model.safetensors")
    before = WEIGHTS.tensors["blocks.0.attn.qkv.weight"]
    assert not torch.equal(trained["backbone.layers.0.attn.qkv.weight"], before)
    assert any(
        "16" in note for note in model_recipe(random_weights(_patch8(), 0).spec, config(ade)).notes
    )


def _patch8() -> Any:
    from dataclasses import replace

    return replace(SPEC, patch_size=8, grid=(4, 4))


def test_rotary_positions_are_fine_tuned_too(ade: Path) -> None:
    made = model_recipe(replace(SPEC, position="rotary"), config(ade))
    assert made.backbone["spec"]["position"] == "rotary"
