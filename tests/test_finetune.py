"""Fine-tuning: golden logits, layer decay and schedule; recipes; kills; memory; chance."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from mimbench.sample import generate
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.training.optim import Schedule, scaled_lr
from mimbench.vit.network import build_vit
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.processes import kill_at
from transfer.classification import finetune
from transfer.classification.augmentation import Augmentation, train_transform
from transfer.classification.classifier import at_size, build_classifier
from transfer.classification.finetune import micro_batch, train_classifier
from transfer.classification.recipes import RECIPES, recipe_for
from transfer.classification.tuner import (
    Config,
    FineTune,
    make_optimizer,
)

SMALL = {
    "image_size": 32,
    "resize": None,
    "batch": 16,
    "epochs": 6,
    "warmup": 1,
    "lr": 0.02,
    "layer_decay": 0.9,
    "drop_path": 0.0,
    "precision": "fp32",
    "augment": {
        "randaugment": None, "scale": [0.9, 1.0], "flip": 0.0, "erase": 0.0,
        "mixup": 0.2, "cutmix": 0.0, "smoothing": 0.1,
    },
    "machine": {"device": "cpu", "workers": 0, "max_batch": 8},
}  # fmt: skip


def config(data: Path, **changes: Any) -> Config:
    return from_mapping(Config, {**SMALL, "data": str(data), **changes})


@pytest.fixture
def weights(small_spec: VitSpec) -> VitWeights:
    return random_weights(small_spec, 0)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_golden_logits(golden: Path, tiny_spec: VitSpec, pool: Any):
    arrays = np.load(golden / f"vit_{pool}_pool.npz")
    tensors = {
        k.removeprefix("weight/"): torch.from_numpy(arrays[k])
        for k in arrays.files
        if k.startswith("weight/")
    }
    classes = len(tensors["head.bias"])
    fine_tuned = replace(tiny_spec, final_norm="fc_norm") if pool == "avg" else tiny_spec
    encoder = {k: v for k, v in tensors.items() if not k.startswith("head.")}
    given = VitWeights(spec=fine_tuned, tensors=encoder, format="golden", digest="golden")
    model, dropped = build_classifier(given, classes, pool=pool, drop_path=0.1, seed=0)
    assert dropped == []
    model.load_state_dict(tensors)
    logits = model.eval()(torch.from_numpy(arrays["images"]))
    np.testing.assert_allclose(logits.detach().numpy(), arrays["logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_pooling_drops_exactly_the_norm_it_replaces(weights: VitWeights, pool: Any):
    model, dropped = build_classifier(weights, 7, pool=pool, drop_path=0.0, seed=3)
    own = dict(model.named_parameters())
    assert dropped == (["norm.weight", "norm.bias"] if pool == "avg" else [])
    assert set(own) - set(weights.tensors) == {"head.weight", "head.bias"} | (
        {"fc_norm.weight", "fc_norm.bias"} if pool == "avg" else set()
    )
    for name, tensor in weights.tensors.items():
        if name not in dropped:
            assert torch.equal(own[name], tensor), name
    assert own["head.weight"].std().item() == pytest.approx(2e-5, rel=0.2)
    assert own["head.bias"].abs().max() == 0
    again, _ = build_classifier(weights, 7, pool=pool, drop_path=0.0, seed=3)
    assert torch.equal(again.state_dict()["head.weight"], model.state_dict()["head.weight"])


def test_missing_and_foreign_tensors_are_refused(weights: VitWeights):
    short = {k: v for k, v in weights.tensors.items() if k != "blocks.1.attn.qkv.bias"}
    with pytest.raises(UserError, match=r"missing blocks\.1\.attn\.qkv\.bias"):
        build_classifier(replace(weights, tensors=short), 7, pool="avg", drop_path=0, seed=0)


def test_golden_layer_decay_of_the_optimizer(golden: Path, tmp_path: Path):
    table = json.loads((golden / "schedules.json").read_text())["layer_decay_vit_base"]
    expected = table["lr_scale_and_weight_decay_by_parameter"]
    spec = VitSpec(
        embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14)
    )
    with torch.device("meta"):
        model = build_vit(spec, num_classes=1000, pool="avg", fc_norm=True)
    recipe = replace(recipe_for("hpm", 768), layer_decay=0.8)
    groups = make_optimizer(model, recipe, spec).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name] == (pytest.approx(row[0], rel=1e-6), row[1]), name
    assert {tuple(g["betas"]) for g in groups} == {(0.9, 0.999)}


def test_schedule_is_timms_cosine_per_step():
    """The one schedule of this repository, against the part of timm that does the same."""
    per_epoch, epochs, warmup = 10, 8, 2
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=(epochs - warmup) * per_epoch,
        lr_min=1e-6,
        warmup_t=warmup * per_epoch,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    ours = Schedule(peak=0.3, epochs=epochs, warmup=warmup, floor=1e-6)
    for step in range(per_epoch * epochs):
        theirs.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(ours(step / per_epoch), abs=1e-9)


def test_recipes_are_the_published_ones(tmp_path: Path):
    rows = {
        (name, size): (r.epochs, r.warmup, r.batch, r.lr, r.layer_decay, r.drop_path, r.pool)
        for name, sizes in RECIPES.items()
        for size, r in sizes.items()
    }
    assert rows["mae", "B"] == (100, 5, 1024, 5e-4, 0.65, 0.1, "avg")
    assert rows["mae", "L"] == (50, 5, 1024, 1e-3, 0.75, 0.2, "avg")
    assert rows["mae", "H"] == (50, 5, 1024, 1e-3, 0.75, 0.3, "avg")
    assert rows["hpm", "B"] == (100, 5, 384, 5e-4, 0.8, 0.1, "avg")
    assert rows["hpm", "L"] == (50, 5, 512, 5e-4, 0.8, 0.1, "avg")
    assert rows["beit", "S"][:3] == (200, 20, 1024)
    assert rows["beit", "L"][4:] == (0.75, 0.4, "cls")
    assert "that of B" in recipe_for("mae", 384).note
    assert "width 96" in recipe_for("hpm", 96).note
    settings = from_mapping(Config, {"data": str(tmp_path), "recipe": "hpm", "epochs": 7})
    assert settings.resolve(1024).epochs == 7
    assert settings.resolve(1024).batch == 512
    # 5e-4 x 384 / 256
    learner_peak = scaled_lr(settings.resolve(768).lr, settings.resolve(768).batch)
    assert learner_peak == pytest.approx(7.5e-4)


def test_transform_is_timms_with_the_recipes_parts(small_spec: VitSpec):
    made = train_transform(Augmentation(), 224, "bicubic", small_spec)
    names = [type(t).__name__ for t in made.transforms]
    assert names[:3] == ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert "ColorJitter" not in names
    assert names[-1] == "RandomErasing"
    off = Augmentation(randaugment=None, flip=0.0, erase=0.0)
    made = train_transform(off, 224, "bicubic", small_spec)
    names = [type(t).__name__ for t in made.transforms]
    assert not {"RandomHorizontalFlip", "RandAugment", "RandomErasing"} & set(names)


def test_position_table_is_resized_once_by_the_familys_rule(weights: VitWeights):
    larger = at_size(weights, 48)
    assert larger.spec.image_size == (48, 48)
    expected = resize_table(
        weights.tensors["pos_embed"], grid=(4, 4), to=(6, 6), prefix=1, rule="bicubic"
    )
    assert torch.equal(larger.tensors["pos_embed"], expected)
    model, _ = build_classifier(larger, 3, pool="avg", drop_path=0.0, seed=0)
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    with pytest.raises(UserError, match=r"36 does not divide .* for example 32"):
        at_size(weights, 36)


def test_learns_and_writes_outcomes(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=16, val=8)
    result = finetune.run(weights, config(data), tmp_path / "out")
    metrics, notes = result.metrics, result.notes
    # chance is 25
    assert metrics["top1"] >= 60
    [top1, top5] = result.outcomes[0].statistics()
    assert top5.whole() == metrics["top5"]
    assert top1.whole() == metrics["top1_last"] == metrics["top1"]
    assert notes["tensors_not_taken"] == ["norm.weight", "norm.bias"]
    assert (notes["micro_batch"], notes["micro_steps"], notes["effective_batch"]) == (8, 2, 16)
    # a finished run answers again without training
    assert finetune.run(weights, config(data), tmp_path / "out").metrics == metrics
    with pytest.raises(UserError, match="another configuration"):
        finetune.run(weights, config(data, weight_decay=0.1), tmp_path / "out")


def test_shuffled_labels_give_chance(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=12, val=25)
    settings = config(data, epochs=3)
    train, val = settings.images()
    rng = np.random.default_rng(0)
    train, val = (x.relabel(rng.permutation(x.labels)) for x in (train, val))
    metrics = train_classifier(weights, train, val, settings, tmp_path / "out", Ranks()).metrics
    # 100 images, chance 25: three standard deviations
    assert metrics["top1"] < 38


def test_an_epoch_that_was_not_scored_has_no_accuracy(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    """It was written as 0, and the report drew it."""
    data = painted_images(tmp_path / "data", train=8, val=4)
    finetune.run(weights, config(data, epochs=3, eval_every=2), tmp_path / "out")
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    scored = {row["step"]: row["top1"] for row in map(json.loads, lines) if "top1" in row}
    # two steps an epoch: the second epoch is due, and the last one always is
    assert scored.keys() == {4, 6}
    assert all(value > 0 for value in scored.values())


def test_out_of_memory_halves_the_micro_batch_at_equal_effective_batch(
    painted_images: Callable[..., Path],
    weights: VitWeights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    settings = config(data, epochs=2)
    real, sizes = FineTune.loss, []

    def tight(self: FineTune, model: Any, batch: Any, at: Any):
        size = len(batch.indices)
        # runs out in the second epoch too: the first one must not be lost
        if size > 4 and at.epoch == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append((at.epoch, size))
        return real(self, model, batch, at)

    monkeypatch.setattr(FineTune, "loss", tight)
    notes = finetune.run(weights, settings, tmp_path / "out").notes
    assert (notes["micro_batch"], notes["micro_steps"], notes["effective_batch"]) == (4, 4, 16)
    assert notes["memory_halved"] is True
    # two steps an epoch: the first epoch was trained once, with 8; the second with 4
    assert sizes == [(0, 8)] * 4 + [(1, 4)] * 8


def test_micro_batches_are_even_where_images_are_mixed():
    assert micro_batch(384, 8, 64, even=True) == 48
    assert micro_batch(30, 1, 15, even=True) == 10
    assert micro_batch(30, 1, 15, even=False) == 15
    assert micro_batch(16, 1, 1, even=True) == 2


def _train_slowly(weights: VitWeights, settings: Config, out: Path, where: str) -> None:
    torch.set_num_threads(1)
    real = FineTune.loss

    def slowly(self: FineTune, model: Any, batch: Any, at: Any):
        if at.epoch >= 1:
            time.sleep(600)
        return real(self, model, batch, at)

    if where == "training":
        FineTune.loss = slowly
    else:
        FineTune.predict = lambda self: time.sleep(600)  # pyright: ignore[reportAttributeAccessIssue]
    finetune.run(weights, settings, out)


@pytest.mark.parametrize("where", ["training", "scoring"])
def test_killed_after_an_epoch_it_continues_exactly(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path, where: str
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    settings, out = config(data, epochs=3), tmp_path / "killed"
    saved = out / "checkpoints/last.pt"
    kill_at(saved, _train_slowly, weights, settings, out, where)
    first = torch.load(saved, weights_only=True)
    assert first["step"] == 2
    seen = []
    real = FineTune.loss

    def watch(self: FineTune, model: Any, batch: Any, at: Any):
        seen.append(at.step)
        return real(self, model, batch, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "loss", watch)
        metrics = finetune.run(weights, settings, out).metrics
    assert seen == [2, 2, 3, 3, 4, 4, 5, 5]
    whole = finetune.run(weights, settings, tmp_path / "whole").metrics
    assert metrics == whole
    ended, direct = (
        torch.load(folder / "checkpoints/last.pt", weights_only=True)["model"]
        for folder in (out, tmp_path / "whole")
    )
    for name, tensor in direct.items():
        torch.testing.assert_close(ended[name], tensor, rtol=1e-5, atol=1e-6)


def test_class_token_recipe_and_plain_labels(
    painted_images: Callable[..., Path], weights: VitWeights, tmp_path: Path
):
    data = painted_images(tmp_path / "data", train=8, val=4)
    augment = {**SMALL["augment"], "mixup": 0.0, "smoothing": 0.0}
    settings = config(data, recipe="beit", augment=augment, lr=2e-3, epochs=1, warmup=0)
    result = finetune.run(weights, settings, tmp_path / "out")
    assert result.notes["tensors_not_taken"] == []
    assert result.notes["recipe"]["pool"] == "cls"
    assert 0 <= result.metrics["top1"] <= result.metrics["top5"] <= 100


@pytest.mark.slow
def test_on_the_sample_data_far_above_chance(tmp_path: Path):
    root = generate(
        tmp_path / "sample", train_per_class=120, val_per_class=40, train_scenes=1, val_scenes=1
    )
    spec = VitSpec(embed_dim=96, depth=4, num_heads=3, mlp_dim=384, patch_size=8, grid=(4, 4))
    augment = {**SMALL["augment"], "mixup": 0.0}
    settings = config(
        root / "classification", batch=64, epochs=8, lr=4e-3, layer_decay=0.85, augment=augment
    )
    metrics = finetune.run(random_weights(spec, 0), settings, tmp_path / "out").metrics
    # chance is 10; of 400 images a standard deviation is 1.5 (60 when written)
    assert metrics["top1"] > 35
