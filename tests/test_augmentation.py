"""Every paper recipe with all of its augmentation, and draws that follow the image's place in the run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader

from mimbench.benchmarks.manifest import load_manifest
from mimbench.networks.levels import random_levels
from mimbench.system.config import from_mapping, merge
from mimbench.system.errors import UserError
from mimbench.system.generators import seeded
from mimbench.system.runtime import Ranks
from mimbench.system.seeds import derive_seed
from mimbench.training.batches import SeededSamples
from mimbench.training.learner import RunContext, StepInfo
from mimbench.training.loop import fit
from mimbench.vit.depth import StochasticDepth, image_seeds
from mimbench.vit.network import build_vit
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.odd_images import odd_images
from tests.support.tiny_levels import CONVNEXT, PLAIN_CONVNEXT, SWIN
from transfer.classification import heads
from transfer.classification.augmentation import (
    Augmentation,
    Mixing,
    make_criterion,
    mirrored,
    posterize,
    train_transform,
)
from transfer.classification.finetune import loop_config
from transfer.classification.training import TrainImages
from transfer.classification.tuner import Config, FineTune

DRAWN = 2000
WIDTHS = [384, 768, 1024, 1280]
TINY = random_weights(
    VitSpec(embed_dim=32, depth=3, num_heads=2, mlp_dim=64, patch_size=16, grid=(4, 4)), 0
)
STAGED = {
    "fcmae": (CONVNEXT, "ConvNeXtV2-B"),
    "simmim": (SWIN, "Swin-B"),
    "spark": (PLAIN_CONVNEXT, "ConvNeXt-B"),
}
"""The recipes for networks with levels: a network of the family, and a model that was published."""
MILDER = {"in-ft-spark-resnet": Augmentation(mixup=0.1)}
"""The recipes whose published augmentation is not the usual one."""


def paper_recipes(task: str) -> dict[str, dict[str, Any]]:
    """Return the paper profile's configuration of every benchmark of a task."""
    manifest = load_manifest()
    return {
        name: manifest.recipe(name, "paper")[1]
        for name, benchmark in manifest.benchmarks.items()
        if benchmark.task == task and "paper" in benchmark.profiles
    }


def different(task: str) -> dict[str, dict[str, Any]]:
    """Return the recipes whose training images differ, named by the first that has them."""
    parts = ("augment", "crop", "interpolation", "image_size", "recipe")
    found: dict[str, dict[str, Any]] = {}
    for name, config in paper_recipes(task).items():
        if all(any(o.get(p) != config.get(p) for p in parts) for o in found.values()):
            found[name] = config
    return found


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd_images(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", different("transfer.classification.finetune"))
def test_paper_recipe_with_all_its_augmentation_on_2000_odd_images(
    name: str, photographs: Path
) -> None:
    """RandAugment's posterize drew 0 bits, which Pillow refuses: every fine-tune died in minutes."""
    plain = paper_recipes("transfer.classification.finetune")[name]
    small = {"image_size": 64, "resize": 73, "precision": "fp32", "subset": {}}
    config = from_mapping(Config, merge(plain, {**small, "data": str(photographs)}))
    weights, model = TINY, ""
    if config.recipe in STAGED:
        spec, model = STAGED[config.recipe]
        weights = random_levels(spec, 0)
    recipe = config.resolve(768, model)
    assert config.augment == MILDER.get(name, Augmentation())
    assert recipe.drop_path > 0
    # a network this small is of no published size: every value is given
    own = {n: getattr(recipe, n) for n in ("epochs", "lr", "layer_decay", "drop_path", "pool")}
    config = replace(config, recipe="mae", **own)
    train, val = config.images()
    learner = FineTune(weights, config, val, Ranks())
    learner.model.train()
    transform = train_transform(config.augment, 64, config.interpolation, weights.spec)
    samples = SeededSamples(TrainImages(train, transform), seed=1)
    losses = []
    for first in range(0, DRAWN, 16):
        rows = [samples[(i // len(train), i % len(train))] for i in range(first, first + 16)]
        images = torch.stack([item[0] for _, item, _ in rows])
        labels = torch.tensor([item[1] for _, item, _ in rows])
        assert not any(faults for _, _, faults in rows)
        at = StepInfo(step=first, steps_per_epoch=1, epochs=1, batch=16)
        batch: Any = _Batch([images, labels])
        losses.append(learner.loss(learner.model, batch, at)["loss"])
    assert torch.isfinite(torch.stack(losses)).all()


class _Batch:
    def __init__(self, data: list[Tensor]) -> None:
        self.data = data


@pytest.mark.parametrize("name", different("transfer.classification.linear"))
def test_paper_probe_crops_2000_odd_images(name: str, photographs: Path) -> None:
    plain = paper_recipes("transfer.classification.linear")[name]
    config = from_mapping(heads.Config, merge(plain, {"subset": {}, "data": str(photographs)}))
    train, _ = config.images()
    samples = SeededSamples(TrainImages(train, config.crop.transform(32)), seed=1)
    for i in range(DRAWN):
        _, item, faults = samples[(i // len(train), i % len(train))]
        assert item[0].shape == (3, 32, 32)
        assert not faults


def test_posterize_without_bits_is_black_as_older_pillow_made_it() -> None:
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    with pytest.raises(ValueError, match="bits"):
        auto_augment.posterize(image, 0)
    assert posterize(image, 0).getpixel((1, 1)) == (0, 0, 0)
    assert posterize(image, 2).getpixel((1, 1)) == (192, 64, 0)
    assert posterize(image, 8).getpixel((1, 1)) == (200, 100, 50)


def test_no_operation_keeps_timms_posterize(small_spec: VitSpec) -> None:
    chain = train_transform(Augmentation(), 32, "bicubic", small_spec)
    [randaugment] = [step for step in chain.transforms if hasattr(step, "ops")]
    assert {o.aug_fn for o in randaugment.ops if "Posterize" in o.name} == {posterize}


class Failing:
    """Samples whose second image breaks in an operation."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return auto_augment.posterize(Image.new("RGB", (4, 4)), 0 if index == 1 else 4).size[0]

    def name(self, index: int) -> str:
        return f"photo-{index}.jpg"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loaders_error_names_file_and_operation(workers: int) -> None:
    loader: DataLoader[Any] = DataLoader(
        SeededSamples(Failing(), seed=0),
        batch_sampler=[[(0, 0)], [(0, 1)]],
        num_workers=workers,
        collate_fn=lambda items: items,
    )
    with pytest.raises(UserError) as found:
        list(loader)
    assert str(found.value).startswith("photo-1.jpg: posterize (ImageOps.py, line ")
    assert "bits must be between" in str(found.value)
    assert "Traceback" not in str(found.value)


def test_mixing_is_timms_on_each_group() -> None:
    augment, group = Augmentation(), 8
    mixing = Mixing(augment, 10, group=group, seed=3)
    images, labels = torch.rand(16, 3, 12, 12), torch.arange(16) % 10
    found, targets = mixing(images, labels, step=5, first=0)
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    order, back = mirrored(group, images.device)
    for number in (0, 1):
        rows = slice(number * group, (number + 1) * group)
        with seeded(derive_seed(3, 5, number, 13)):
            x, y = theirs(images[rows][order].clone(), labels[rows][order])
        assert torch.equal(found[rows], x[back])
        assert torch.equal(targets[rows], y[back])
    assert not torch.equal(found, images), "nothing was mixed"
    # neighbours face each other: each pair's targets hold both labels
    shares = targets.view(8, 2, 10)
    assert torch.allclose(shares.sum(dim=(1, 2)), torch.full((8,), 2.0))
    for pair, (one, other) in enumerate(labels.view(8, 2).tolist()):
        assert set(shares[pair, 0].topk(2).indices.tolist()) == {one, other}
    assert not torch.equal(mixing(images, labels, step=6, first=0)[0], found), "the step moves it"


def trained(
    data: Path, weights: VitWeights, out: Path, max_batch: int, **changes: Any
) -> dict[str, Tensor]:
    """Return the parameters after two steps, two groups each, with everything on that is drawn."""
    mapping = {
        "image_size": 32, "resize": None, "batch": 64, "epochs": 2, "warmup": 0, "lr": 5e-3,
        "drop_path": 0.4, "precision": "fp32", "recipe": "mae",
        "machine": {"device": "cpu", "workers": 0, "max_batch": max_batch},
        "data": str(data), **changes,
    }  # fmt: skip
    config = from_mapping(Config, mapping)
    train, val = config.images()
    learner = FineTune(weights, config, val, Ranks())
    recipe = replace(config.resolve(weights.spec.embed_dim))
    transform = train_transform(config.augment, 32, config.interpolation, weights.spec)
    context = RunContext(out=out, digest="d", machine=config.machine)
    learner.end_epoch = lambda at: {"top1": 0.0}
    fit(learner, TrainImages(train, transform), loop_config(config, recipe), context)
    return {k: v.detach().clone() for k, v in learner.model.state_dict().items()}


def test_how_many_images_fit_at_once_moves_no_weight(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    """Mixup drew once for each micro-batch, and drop path from the micro-batch's own draws."""
    data = painted_images(tmp_path / "data", train=16, val=2)
    weights = random_weights(small_spec, 0)
    whole = trained(data, weights, tmp_path / "whole", 64)
    for most in (4, 16):
        parts = trained(data, weights, tmp_path / str(most), most)
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, atol=2e-5, rtol=1e-4)
    still = trained(data, weights, tmp_path / "still", 64, drop_path=0.0)
    assert not torch.allclose(still["head.weight"], whole["head.weight"], atol=1e-3)


def test_drop_path_drops_as_often_as_it_says_and_keeps_the_mean(small_spec: VitSpec) -> None:
    model = build_vit(small_spec, drop_path=0.5)
    depth = StochasticDepth(model)
    assert [round(layer.drop_prob, 3) for layer in depth.layers] == sorted(
        2 * [round(0.5 * i / 3, 3) for i in range(4)][1:]
    )
    last = depth.layers[-1].train()
    depth.draw(image_seeds(0, 7, 0, 4000), torch.device("cpu"))
    out = last(torch.ones(4000, 2, 3))
    assert (out[:, 0, 0] == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert out.mean() == pytest.approx(1.0, abs=0.06)
    assert (out == out[:, :1, :1]).all(), "a whole image is dropped or kept"
    assert torch.equal(last.eval()(torch.ones(2, 2, 3)), torch.ones(2, 2, 3))
    depth.draw(image_seeds(0, 7, 1000, 5), torch.device("cpu"))
    assert torch.equal(last.train()(torch.ones(5, 2, 3)), out[1000:1005]), "the place decides"


def test_an_odd_batch_cannot_be_mixed(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", train=4)
    with pytest.raises(UserError, match="a batch of 15 has to be even"):
        trained(data, random_weights(small_spec, 0), tmp_path / "out", 16, batch=15)


def test_without_mixing_the_labels_are_smoothed_or_plain() -> None:
    logits, labels = torch.randn(4, 5), torch.arange(4)
    plain = make_criterion(Augmentation(mixup=0.0, cutmix=0.0, smoothing=0.0))
    smooth = make_criterion(Augmentation(mixup=0.0, cutmix=0.0))
    expected = torch.nn.functional.cross_entropy
    assert torch.allclose(plain(logits, labels), expected(logits, labels))
    assert torch.allclose(
        smooth(logits, labels), expected(logits, labels, label_smoothing=0.1), atol=1e-6
    )
