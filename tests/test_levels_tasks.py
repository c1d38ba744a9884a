"""Networks with levels through the image-level tasks: k-NN, probe, fine-tuning with their own recipes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb

import knn.classify
import transfer.classification.finetune as finetune
import transfer.classification.linear as linear
from mimbench.networks.kinds import plain_vit
from mimbench.networks.levels import LevelWeights, random_levels
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.training.loop import StepInfo
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.tiny_levels import CONVNEXT, FAMILIES
from transfer.classification.classifier import at_size, build_classifier
from transfer.classification.staged_recipes import staged_recipe
from transfer.classification.tuner import FineTune, make_optimizer


@pytest.fixture
def data(
    painted_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    return painted_images(tmp_path / "data", classes=3, train=12, val=6)


def settings(task: Any, data: Path, **changes: Any) -> Any:
    common = {
        "data": str(data),
        "image_size": 32,
        "resize": None,
        "machine": {"device": "cpu", "workers": 0},
    }
    return from_mapping(task.Config, {**common, **changes})


@pytest.mark.parametrize("family", FAMILIES)
def test_knn_and_probe_read_the_image_vector(family: str, data: Path, tmp_path: Path) -> None:
    weights = random_levels(FAMILIES[family], seed=0)
    found = knn.classify.run(
        weights, settings(knn.classify, data, k=[3], main_k=3), tmp_path / "knn"
    ).metrics
    assert found["cls_k3_T0.07_top1"] == found["avg_k3_T0.07_top1"]
    changes = {"epochs": 1, "warmup": 0, "batch": 12, "norm_batch": 12, "precision": "fp32"}
    probe = settings(linear, data, choices=["avg"], **changes)
    assert 0 <= linear.run(weights, probe, tmp_path / "probe").metrics["top1"] <= 100
    with pytest.raises(UserError, match=r"need cls\.4.* blocks have other widths"):
        linear.run(weights, replace(probe, choices=("cls4",)), tmp_path / "four")


@pytest.mark.parametrize("family", FAMILIES)
def test_fine_tuning_moves_every_parameter(family: str, data: Path, tmp_path: Path) -> None:
    weights = random_levels(FAMILIES[family], seed=0)
    plain = {"randaugment": None, "erase": 0.0, "mixup": 0.0, "cutmix": 0.0}
    config = settings(
        finetune, data, epochs=2, warmup=0, batch=12, lr=0.05, layer_decay=0.8, drop_path=0.1,
        precision="fp32", augment=plain,
    )  # fmt: skip
    found = finetune.run(weights, config, tmp_path / "run").metrics
    assert found.keys() == {"top1", "top5", "top1_last", "top1_best"}


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_reaches_the_stem_last(family: str) -> None:
    spec = FAMILIES[family]
    weights = random_levels(spec, seed=0)
    model, _ = build_classifier(weights, 3, pool="avg", drop_path=0.0, seed=0)
    recipe = replace(staged_recipe("fcmae", "ConvNeXtV2-T"), layer_decay=0.5)
    groups = make_optimizer(model, recipe, spec).param_groups
    scales = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    named = {n: scales[id(p)] for n, p in model.named_parameters()}
    assert set(scales) == {id(p) for p in model.parameters()}
    first = next(iter(named))
    assert named[first] == 0.5 ** (spec.layers - 1)
    assert named[[n for n in named if n.endswith("weight")][-1]] == 1.0


def test_a_pre_trained_file_without_a_norm_starts_one(data: Path) -> None:
    spec = replace(CONVNEXT, final_norm=False)
    weights = random_levels(spec, seed=0)
    assert not any(n.startswith("head.") for n in weights.tensors)
    model, dropped = build_classifier(weights, 3, pool="avg", drop_path=0.0, seed=0)
    assert dropped == []
    state = model.state_dict()
    assert torch.equal(state["head.norm.weight"], torch.ones(24))
    assert torch.equal(state["stem.0.weight"], weights.tensors["stem.0.weight"])
    short = {n: t for n, t in weights.tensors.items() if n != "stem.0.bias"}
    broken = LevelWeights(spec=spec, tensors=short, format="", digest="", name="short")
    with pytest.raises(UserError, match=r"short: nothing fills stem\.0\.bias"):
        build_classifier(broken, 3, pool="avg", drop_path=0.0, seed=0)


def test_recipes_are_those_of_their_families() -> None:
    base = staged_recipe("fcmae", "ConvNeXtV2-B")
    assert (base.epochs, base.warmup, base.lr, base.layer_decay) == (100, 20, 6.25e-4, 0.6)
    assert base.joined == 3
    assert staged_recipe("simmim", "Swin-L").layer_decay == 0.7
    large = staged_recipe("fcmae", "ConvNeXtV2-L")
    assert "that of ConvNeXtV2-B" in large.note
    assert large.lr == base.lr
    with pytest.raises(UserError, match="recipe simmim is published for Swin alone, this is B/16"):
        staged_recipe("simmim", "B/16")


def test_the_average_of_the_weights_is_scored_and_resumed(data: Path) -> None:
    spec = replace(CONVNEXT, name="ConvNeXtV2-T")
    config = settings(finetune, data, recipe="fcmae", batch=12, precision="fp32", ema=0.75)
    _, val = config.images()

    def learner() -> FineTune:
        return FineTune(random_levels(spec, seed=0), config, val, Ranks())

    first = learner()
    assert first.average is not None
    before = {n: t.clone() for n, t in first.average.state_dict().items()}
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter += 1
    at = StepInfo(step=1, steps_per_epoch=3, epochs=1, batch=12)
    first.after_update(at)
    for name, tensor in first.average.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.25)
    # what is scored is the average: the last weights may be anything
    scored = first.predict()
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.zero_()
    assert torch.equal(first.predict(), scored)
    second = learner()
    second.restore(first.state())
    assert torch.equal(second.predict(), scored)
    assert learner().config.canonical().ema == 0.75
    plain = settings(finetune, data, recipe="mae")
    assert plain.canonical().ema is None, "other recipes keep their protocol"
    assert settings(finetune, data, recipe="spark").canonical().ema == 0.9999


def test_sparks_convnexts_repeat_their_pictures(data: Path) -> None:
    """Three views of a third of the pictures, and L's own weight decay."""
    config = settings(finetune, data, recipe="spark", weight_decay=None)
    small, large = (config.resolve(0, f"ConvNeXt-{size}") for size in "SL")
    assert (small.weight_decay, large.weight_decay) == (0.01, 0.02)
    assert config.resolve(0, "ResNet-50").weight_decay == 0.02
    repeats = config.repeats(small)
    assert repeats is not None
    assert repeats.views == 3
    keys = repeats.order(torch.randperm(4096), 1024)
    pictures = (keys % 4096).bincount(minlength=4096)
    assert len(keys) == 4096
    assert set(pictures.tolist()) == {0, 1, 3}
    assert config.repeats(config.resolve(0, "ResNet-50")) is None
    assert replace(config, weight_decay=0.3).resolve(0, "ConvNeXt-S").weight_decay == 0.3
    assert "TrivialAugment" in small.note


def test_sparks_resnets_are_trained_by_lamb_under_a_binary_loss(data: Path) -> None:
    spec = replace(FAMILIES["resnet"], name="ResNet-50")
    config = settings(finetune, data, recipe="spark", batch=12, precision="fp32", drop_path=0.0)
    _, val = config.images()
    learner = FineTune(random_levels(spec, seed=0), config, val, Ranks())
    assert isinstance(learner.optimizer, Lamb)
    assert learner.optimizer.defaults["always_adapt"]
    assert (learner.recipe.epochs, learner.recipe.batch, learner.recipe.lr) == (300, 12, 2e-3)
    logits, wanted = torch.randn(4, 3), torch.rand(4, 3)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted)
    torch.testing.assert_close(learner.criterion(logits, wanted), binary)
    before = [p.clone() for p in learner.model.parameters()]
    learner.model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.1
    learner.optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(learner.model.parameters(), before, strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("position", ["rotary", "relative", "absolute+rotary"])
def test_a_vit_of_any_positions_is_fine_tuned_at_another_size(position: Any) -> None:
    spec = VitSpec(
        embed_dim=32, depth=2, num_heads=2, mlp_dim=64, patch_size=8, grid=(4, 4), position=position,
        rotation="stretched", rotation_grid=4,
    )  # fmt: skip
    weights = at_size(random_weights(spec, 0), 48)
    model, _ = build_classifier(weights, 3, pool="avg", drop_path=0.2, seed=0)
    logits = model.train()(torch.randn(2, 3, 48, 48))
    logits.square().mean().backward()
    assert logits.shape == (2, 3)
    assert all(p.grad is not None for p in model.parameters())


def test_protocols_about_the_tokens_of_a_vit_refuse_networks_with_levels() -> None:
    with pytest.raises(
        UserError, match=r"reads the tokens of a ViT's blocks, and .* is convnextv2"
    ):
        plain_vit(random_levels(CONVNEXT, seed=0))
