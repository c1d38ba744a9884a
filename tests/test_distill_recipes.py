"""Distillation step by step: schedules, centres, crops; and its recipes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.system.config import load_yaml, to_mapping
from mimbench.system.errors import UserError
from mimbench.training.learner import StepInfo
from pretrain.objectives.distill.config import (
    DistillConfig,
    DistillObjectiveConfig,
    HeadConfig,
    ViewsConfig,
)
from pretrain.objectives.distill.head import ProjectionHead
from pretrain.objectives.distill.loss import DistillLoss, Logits
from pretrain.objectives.distill.views import MultiCrops
from pretrain.objectives.recipes import DISTILLATION, DISTILLATION_BASE, read_recipe
from tests.support.tiny_distill import at, batch, learner, rng, tiny


def test_schedules_clipping_and_the_frozen_layer() -> None:
    run = learner("optimizer.clip_grad=0.01", "optimizer.warmup_epochs=0")
    run.loss(run.student, batch(), at(0))["loss"].backward()
    run.before_update(at(0))
    assert run.student.head.last_layer.weight_v.grad is None
    assert run.student.head.last_layer.weight_g.grad is None
    norms = [p.grad.norm() for p in run.student.parameters() if p.grad is not None]
    assert max(norms) < 0.0100001
    assert sum(norm > 0.0099 for norm in norms) > 5
    decays = [g["weight_decay"] for g in run.optimizer.param_groups]
    assert decays == pytest.approx([0.04, 0.0])
    run.loss(run.student, batch(), at(5))["loss"].backward()
    run.before_update(at(25))
    assert run.student.head.last_layer.weight_v.grad is not None
    assert run.optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.22)
    assert all(p.ndim > 1 for p in run.optimizer.param_groups[0]["params"])
    assert run.rate(at(50)) == pytest.approx(1e-6)
    assert run.rate(at(0)) == pytest.approx(5e-4 * 4 / 256)


def test_micro_batches_move_the_centres_like_one_batch() -> None:
    one, two = (DistillLoss(DistillObjectiveConfig(), 6) for _ in range(2))
    logits, patches = torch.randn(8, 6, generator=rng()), torch.randn(8, 4, 6, generator=rng())
    one.note(Logits(logits, patches))
    for part in ([0, 1, 4, 5], [2, 3, 6, 7]):
        two.note(Logits(logits[part], patches[part]))
    for criterion in (one, two):
        criterion.follow()
        assert not criterion.seen
    torch.testing.assert_close(one.centre, two.centre)
    torch.testing.assert_close(one.patch_centre, two.patch_centre)
    torch.testing.assert_close(one.centre, 0.1 * logits.mean(0, keepdim=True))


def test_fixed_gains() -> None:
    head = ProjectionHead(8, HeadConfig(outputs=5, hidden=6, bottleneck=4, norm_last=True))
    assert not head.last_layer.weight_g.requires_grad
    assert isinstance(head.mlp[0], nn.Linear)
    norms = head.project(torch.randn(3, 8)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3), rtol=1e-5, atol=0)


class Flat:
    """One grey picture."""

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8, generator=rng(index))

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("colour", [True, False])
def test_crops(colour: bool) -> None:
    config = ViewsConfig(image_size=32, local_size=16, locals=4, colour=colour)
    crops = MultiCrops(Flat(), config)
    torch.manual_seed(0)
    views = crops[0]
    assert views["global"].shape == (2, 3, 32, 32)
    assert views["local"].shape == (4, 3, 16, 16)
    assert views["global"].dtype == torch.uint8
    torch.manual_seed(0)
    assert torch.equal(crops[0]["local"], views["local"])
    assert len({tuple(v.flatten().tolist()) for v in views["local"]}) == 4
    none = MultiCrops(Flat(), replace(config, locals=0))[0]
    assert none.keys() == {"global"}


def test_each_kind_of_crop_is_distorted_as_often_as_in_dinos_code() -> None:
    """Jitter, grey, blur, solarisation: of both global crops and of the local ones."""
    crops = MultiCrops(Flat(), ViewsConfig(image_size=32, local_size=16, locals=1))
    views: list[Any] = [*crops.globals, crops.local]
    drawn = [[t.p for t in view.transforms[-1].transforms] for view in views]
    assert drawn == [[0.8, 0.2, 1.0, 0.0], [0.8, 0.2, 0.1, 0.2], [0.8, 0.2, 0.5, 0.0]]


def test_base_spells_out_every_default() -> None:
    base, own = load_yaml(DISTILLATION_BASE), to_mapping(DistillConfig())
    same_in_file = {"training", "machine"}
    assert base.keys() == own.keys()
    for name, value in own.items():
        if name in same_in_file:
            assert base[name].keys() <= value.keys()
        elif name != "encoder":
            assert base[name] == value, name


@pytest.mark.parametrize("path", sorted(DISTILLATION.glob("*_*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_says_what_it_stands_for(path: Path) -> None:
    config = read_recipe(path.stem, [])
    assert isinstance(config, DistillConfig)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Published" in line or "Reported" in line for line in header)
    assert any("k-NN" in line for line in header)
    assert config.spec().embed_dim == 384
    assert math.isclose(config.optimizer.base_lr, 5e-4)


@pytest.mark.parametrize(
    ("recipe", "epochs", "knn", "linear"),
    [
        ("attmask_vit_small_16_100", 100, "72.8", "76.1"),
        ("attmask_vit_small_16_300", 300, "75.0", "77.5"),
    ],
)
def test_published_numbers_stand_in_the_header(
    recipe: str, epochs: int, knn: str, linear: str
) -> None:
    config = read_recipe(recipe, [])
    assert isinstance(config, DistillConfig)
    assert config.training.epochs == epochs
    assert config.mask["name"] == "attention"
    header = (DISTILLATION / f"{recipe}.yaml").read_text(encoding="utf-8").split("method:")[0]
    assert f"{knn} k-NN, {linear} linear" in header.replace("\n#  ", "")


def test_published_settings() -> None:
    long = read_recipe("attmask_vit_small_16_300", [])
    assert isinstance(long, DistillConfig)
    assert (long.training.batch, long.training.epochs) == (800, 300)
    assert long.data.global_scale == (0.32, 1.0)
    assert long.mask["order"] == "high"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mask.name=hard", "need difficulty, which distillation does not offer"),
        ("mask.name=adversarial", "need generator"),
        ("amount.ratio=0.9", "leaves the range"),
        ("amount.probability=2", "probability is 2"),
        ("data.local_size=18", "local crops of 18 do not divide into patches of 8"),
        ("hed.outputs=3", "unknown key 'hed'.*did you mean 'head'"),
    ],
)
def test_mistakes(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(override)
    with pytest.raises(UserError, match="no config 'attmask_vit_smal_16_100'; did you mean"):
        read_recipe("attmask_vit_smal_16_100", [])


def test_local_positions_follow_dinos_scale_and_offset() -> None:
    """DINO scales the table by (n + 0.1) / N; resizing to n patches gives other positions."""
    run = learner()
    vit, spec = run.student.backbone, run.spec
    assert spec.position_rule == "bicubic-offset"
    table = vit.pos_embed
    assert table is not None
    side = 16 // spec.patch_size
    body = table[:, 1:].unflatten(1, spec.grid).permute(0, 3, 1, 2)
    scale = ((side + 0.1) / spec.grid[0], (side + 0.1) / spec.grid[1])
    wanted = torch.nn.functional.interpolate(body, scale_factor=scale, mode="bicubic")
    tokens = vit.embed(torch.zeros(1, 3, 16, 16))
    vit.pos_embed = torch.nn.Parameter(torch.zeros_like(table))
    found = (tokens - vit.embed(torch.zeros(1, 3, 16, 16)))[:, 1:]
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)


def test_the_class_token_starts_as_dinos() -> None:
    token = learner("encoder.width=192", "encoder.heads=3").student.backbone.cls_token
    assert token is not None
    assert token.std().item() == pytest.approx(0.02, rel=0.25)


def test_the_warm_ups_last_step_takes_the_peak() -> None:
    run = learner("optimizer.warmup_epochs=2", "training.epochs=4")
    rates = [
        run.rate(StepInfo(step=step, steps_per_epoch=5, epochs=4, batch=8)) for step in range(20)
    ]
    peak = run.schedule.peak
    # numpy.linspace(0, peak, 10), then a cosine that begins at the peak again
    np.testing.assert_allclose(rates[:10], np.linspace(0, peak, 10))
    assert rates[10] == pytest.approx(peak)
    assert rates[11] < peak
