"""Linear probes: crops, heads, the LARS recipe in full, resumption, chance for shuffled labels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mimbench.benchmarks.manifest import load_manifest
from mimbench.features.bank import PARTS
from mimbench.scores.metrics import rank_classes
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.training.identity import run_digest
from mimbench.training.learner import StepInfo
from mimbench.training.optim import Schedule
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.classification import linear
from transfer.classification.heads import Config, Heads, make_optimizer
from transfer.classification.linear import train_probe
from transfer.classification.probe import ProbeLearner
from transfer.classification.training import Crop

SMALL = {
    "image_size": 32,
    "resize": None,
    "batch": 16,
    "norm_batch": 8,
    "epochs": 4,
    "warmup": 1,
    "learning_rates": [1000.0],
    "choices": ["avg"],
    "crop": {"kind": "byol", "scale": [0.9, 1.0], "flip": 0.0},
    "machine": {"device": "cpu", "workers": 0, "max_batch": 4},
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))


def config(data: Path, **changes: Any) -> Config:
    return from_mapping(Config, {**SMALL, "data": str(data), **changes})


@pytest.fixture
def weights(small_spec: VitSpec) -> VitWeights:
    return random_weights(small_spec, 0)


def test_two_processes_that_would_change_batch_norm_are_refused(tmp_path: Path):
    whole = config(tmp_path, batch=8, norm_batch=8)
    linear.check_groups(whole, 1)
    with pytest.raises(UserError, match="over 8 images, but 2 processes see 4"):
        linear.check_groups(whole, 2)
    linear.check_groups(replace(whole, norm_batch=4), 2)
    linear.check_groups(replace(whole, batch_norm=False), 2)


def test_every_head_ranks_every_image_however_many_there_are(tmp_path: Path):
    """They are scored 4096 at a time; heads come first, images stay in their order."""
    heads = Heads(
        config(tmp_path, learning_rates=[0.1, 1.0, 2.0], choices=["avg"]), {"avg": 7}, 6, 0
    )
    torch.manual_seed(0)
    for weight in heads.weights:
        torch.nn.init.normal_(weight)
    vectors = {"avg.1": torch.randn(4100, 7)}
    scored: Any = SimpleNamespace(labels=torch.zeros(4100), vectors=vectors)
    learner: Any = SimpleNamespace(heads=heads)
    found = ProbeLearner.ranked(learner, scored)
    assert heads.training
    wanted = torch.stack([rank_classes(one) for one in heads.eval()(vectors)])
    assert found.shape == (3, 4100, 5)
    assert torch.equal(found, wanted)


def test_mae_recipe_learns_and_says_what_it_did(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", val=25)
    out = tmp_path / "out"
    result = linear.run(weights, config(data, epochs=24), out)
    metrics = result.metrics
    # chance is 25, and a standard deviation 4.3
    assert metrics["top1"] >= 42
    assert metrics["top1"] == metrics["top1_last"] <= metrics["top1_best"]
    [outcomes] = result.outcomes
    assert outcomes.statistics()[0].whole() == metrics["top1_last"]
    assert outcomes.statistics()[0].images[0] == "class_0/val_0_000.png"
    assert result.notes["head"] == "avg_lr1000"
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 72


def test_shuffled_labels_give_chance(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=16, val=25)
    settings = config(data)
    train, val = settings.images()
    rng = np.random.default_rng(0)
    train, val = (x.relabel(rng.permutation(x.labels)) for x in (train, val))
    metrics = train_probe(weights, train, val, settings, tmp_path / "out", Ranks()).metrics
    # 100 images, chance 25: three standard deviations
    assert metrics["top1"] < 38


def test_a_grid_is_trained_at_once_as_each_head_alone(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    together = config(
        data, choices=["cls", "cls4+avg"], learning_rates=[0.1, 3.0], optimiser="sgd",
        batch_norm=False, epochs=2, report="best",
    )  # fmt: skip
    metrics = linear.run(weights, together, tmp_path / "grid").metrics
    assert metrics["top1"] == metrics["top1_best"]
    for choice in ("cls", "cls4+avg"):
        for lr in (0.1, 3.0):
            alone = replace(together, choices=(choice,), learning_rates=(lr,))
            single = linear.run(weights, alone, tmp_path / f"{choice}{lr}").metrics
            assert single["top1_last"] == metrics[f"{choice}_lr{lr:g}_top1_last"]


def test_held_out_training_images_choose_the_head(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=10, val=8)
    settings = config(
        data, holdout=0.2, learning_rates=[1e-6, 300.0], epochs=6, storage="bf16", warmup=0
    )
    result = linear.run(weights, settings, tmp_path / "out")
    metrics, notes = result.metrics, result.notes
    assert "8 training images that were held out" in notes["selection"]
    # 32 of 40 images are left: two steps of 16 an epoch
    last = torch.load(tmp_path / "out/checkpoints/last.pt", weights_only=True)
    assert last["step"] == 12
    assert metrics["top1"] == metrics[f"{notes['head']}_top1_last"]
    effect = notes["storage_effect"]
    assert effect["top1_bf16"] == metrics["top1"]
    assert effect["images"] == 32
    with pytest.raises(UserError, match="report must be last"):
        config(data, holdout=0.2, report="best")


def test_grid_gradients_are_those_of_separate_layers(small_spec: VitSpec, tmp_path: Path):
    settings = config(tmp_path, choices=["cls", "cls+avg"], learning_rates=[0.1, 1.0])
    heads = Heads(settings, {"cls": 6, "cls+avg": 12}, 5, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in heads.weights:
            weight += torch.randn(weight.shape, generator=generator)
    vectors = {p: torch.randn(9, 6, generator=generator) for p in PARTS["cls+avg"]}
    labels = torch.arange(9) % 5
    logits = heads(vectors)
    sum(F.cross_entropy(one, labels) for one in logits).backward()  # pyright: ignore[reportAttributeAccessIssue]
    for i, (choice, _) in enumerate(settings.heads):
        x = torch.cat([vectors[p] for p in PARTS[choice]], dim=1)
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()
        weight = heads.weights[i].detach().clone().requires_grad_()
        F.cross_entropy(x @ weight.T, labels).backward()
        torch.testing.assert_close(heads.weights[i].grad, weight.grad, rtol=1e-4, atol=1e-6)


def test_learning_rates_follow_the_linear_rule(tmp_path: Path):
    mae = from_mapping(Config, {"data": str(tmp_path)})
    optimizer = make_optimizer(Heads(mae, {"cls": 4}, 3, seed=0), mae)
    assert [g["lr_scale"] for g in optimizer.param_groups] == [pytest.approx(6.4)]
    hpm = from_mapping(
        Config,
        {"data": str(tmp_path), "optimiser": "sgd", "batch": 2048, "learning_rates": [1e-3]},
    )
    groups = make_optimizer(Heads(hpm, {"cls": 4}, 3, seed=0), hpm).param_groups
    assert groups[0]["lr_scale"] == pytest.approx(8e-3)
    assert (groups[0]["momentum"], groups[0]["weight_decay"]) == (0.9, 0.0)


def test_lars_trajectory_of_the_probes_optimizer(golden: Path, tmp_path: Path):
    """The optimizer that the probe makes, on the reference's gradients."""
    arrays = np.load(golden / "lars.npz")
    settings = config(tmp_path)
    heads = Heads(settings, {"avg": 7}, 5, seed=0)
    optimizer = make_optimizer(heads, settings)
    with torch.no_grad():
        heads.weights[0].copy_(torch.from_numpy(arrays["w0"]))
        heads.biases[0].copy_(torch.from_numpy(arrays["b0"]))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = float(arrays["lr"]), float(arrays["weight_decay"])
    for w, b in zip(arrays["grads_w"], arrays["grads_b"], strict=True):
        heads.weights[0].grad, heads.biases[0].grad = torch.from_numpy(w), torch.from_numpy(b)
        optimizer.step()
    np.testing.assert_allclose(heads.weights[0].detach(), arrays["w10"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(heads.biases[0].detach(), arrays["b10"], rtol=1e-5, atol=1e-7)


def test_a_finished_run_answers_again_and_another_configuration_is_refused(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    settings = config(data, epochs=2)
    first = linear.run(weights, settings, tmp_path / "out").metrics
    assert linear.run(weights, settings, tmp_path / "out").metrics == first
    with pytest.raises(UserError, match="another configuration"):
        linear.run(weights, replace(settings, warmup=0.0), tmp_path / "out")


def test_the_machine_moves_no_number(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    settings = config(data, epochs=2)
    roomy = replace(settings, machine=replace(settings.machine, max_batch=64))
    tops = []
    for i, c in enumerate((settings, roomy)):
        linear.run(weights, c, tmp_path / f"out{i}")
        lines = (tmp_path / f"out{i}" / "metrics.jsonl").read_text().splitlines()
        tops.append([json.loads(line).get("loss") for line in lines])
    assert [x is None for x in tops[0]] == [x is None for x in tops[1]]
    losses = [[x for x in t if x is not None] for t in tops]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_out_of_memory_in_the_backbone_is_survived(
    painted_images: Callable[..., Path],
    weights: VitWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from mimbench.vit.backbone import Backbone

    data = painted_images(tmp_path / "data", train=8, val=4)
    settings = config(data, epochs=1, warmup=0)
    expected = linear.run(weights, settings, tmp_path / "free").metrics
    real = Backbone.vectors

    def tight(backbone: Any, pixels: Any, blocks: Any):
        if len(pixels) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return real(backbone, pixels, blocks)

    monkeypatch.setattr(Backbone, "vectors", tight)
    found = linear.run(weights, settings, tmp_path / "tight")
    assert found.metrics == pytest.approx(expected)
    assert (found.notes["backbone_images_at_once"], found.notes["memory_halved"]) == (2, True)


@pytest.mark.parametrize("kind", ["byol", "inception"])
def test_crops_stay_inside_and_cover_the_scale(kind: Any):
    image = Image.new("RGB", (90, 60))
    torch.manual_seed(0)
    crop = Crop(kind=kind, scale=(0.3, 0.6))
    shares = []
    for _ in range(300):
        top, left, height, width = crop.box(image)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 90 - width
        shares.append(height * width / 5400)
    # byol cuts what reaches over the edge, so that it may cover less
    assert (0.25 if kind == "byol" else 0.28) < min(shares) < 0.35
    assert 0.55 < max(shares) < 0.62
    assert crop.transform(32)(image).shape == (3, 32, 32)


def test_byol_crop_has_no_second_try():
    torch.manual_seed(0)
    wide = Image.new("RGB", (300, 20))
    heights = {Crop(kind="byol", scale=(1.0, 1.0)).box(wide)[2] for _ in range(20)}
    assert heights == {20}
    widths = {Crop(kind="byol", scale=(1.0, 1.0)).box(wide)[3] for _ in range(20)}
    assert len(widths) > 10


def test_features_follow_the_encoders_size_where_a_protocol_says_so() -> None:
    """DINO's probe: class tokens of four blocks for ViT-S, class token and mean for larger ones."""
    entry = load_manifest().benchmarks["in-lin-dino"].config
    config = from_mapping(Config, {**entry, "data": "/nowhere"})
    assert {choice for choice, _ in config.for_width(384).heads} == {"cls4"}
    assert {choice for choice, _ in config.for_width(768).heads} == {"cls+avg"}
    plain = replace(config, small_choices=())
    assert plain.for_width(384) == plain


def test_a_run_belongs_to_one_version_of_its_task(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    """An interrupted run of an older version was continued under the new version's name."""
    settings = {"data": str(painted_images(tmp_path / "data", train=4, val=2)), "image_size": 32}
    config = from_mapping(Config, {**settings, "resize": None})
    train, val = config.images()
    weights = random_weights(small_spec, 0)
    one, two = (
        run_digest(weights, config, version=v, data=[train.digest, val.digest]) for v in (1, 2)
    )
    assert one != two


def test_dinos_probe_keeps_one_rate_for_an_epoch(tmp_path: Path) -> None:
    """torch's CosineAnnealingLR, moved on once an epoch, as the released evaluation does."""
    recipe = load_manifest().recipe("in-lin-dino", "paper")[1]
    settings = from_mapping(Config, {**recipe, "epochs": 5, "data": str(tmp_path)})
    assert settings.anneal == "epoch"
    probe = object.__new__(ProbeLearner)
    probe.config = settings
    probe.schedule = Schedule(peak=1.0, epochs=5, warmup=settings.warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5, eta_min=0)
    for epoch in range(5):
        for step in range(4):
            at = StepInfo(step=4 * epoch + step, steps_per_epoch=4, epochs=5, batch=8)
            assert probe.rate(at) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
