"""The learners themselves against the released codes' numbers, not a loss that a test puts together."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.data.preprocess import Preprocess
from mimbench.system.runtime import Ranks
from mimbench.task import Machine
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD, VitSpec, random_weights
from pretrain.checkpoints.layouts import from_official
from pretrain.config import read_config
from pretrain.masks.adversarial import Strategy
from pretrain.models.autoencoder import to_patches
from pretrain.objectives import adversarial
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.objectives.distill.loss import Logits
from pretrain.objectives.learner import Pretraining
from tests.support import tiny_distill
from tests.test_automae_golden import part, released_critic, released_model
from transfer.classification.training import predict
from transfer.classification.tuner import Config, FineTune

SMALL = (
    "encoder.width=48", "encoder.heads=3", "encoder.depth=3", "encoder.patch=16",
    "decoder.width=32", "decoder.depth=2", "decoder.heads=4", "data.image_size=64",
    "data.root=/nowhere", "machine.device=cpu", "training.precision=fp32", "training.batch=4",
)  # fmt: skip
AT = StepInfo(step=0, steps_per_epoch=3, epochs=10, batch=4)


class GivenMask:
    """Hides what a test says."""

    needs: frozenset[str] = frozenset()

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def idle(self, inp: object) -> bool:
        return True

    def count(self, patches: int) -> int:
        return int(self.mask[0].sum())

    def __call__(self, inp: object, rng: object) -> Tensor:
        return self.mask


def learner(state: Any, images: Tensor, mask: Tensor, *overrides: str) -> Pretraining:
    """A real learner with released weights, its images and its mask."""
    config = read_config("hpm_vit_base_16", [*SMALL, "mask.name=random", *overrides])
    made = Pretraining(config, torch.device("cpu"), Path("unused"))
    made.student.load_state_dict(from_official(state))
    made.strategy = GivenMask(mask)  # pyright: ignore[reportAttributeAccessIssue]
    given = images
    made.prepare = lambda images: (given, to_patches(given, 16))
    return made


def step(made: Pretraining, count: int) -> dict[str, Tensor]:
    batch = Batch(torch.arange(count), torch.zeros(count, 3, 64, 64, dtype=torch.uint8), ())
    return made.loss(made.model, batch, AT)


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_hpms_learner_gives_the_released_losses(golden: Path, kind: str) -> None:
    file = torch.load(golden / f"hpm_official_{kind}.pth", weights_only=True)
    arrays = {
        k: torch.from_numpy(v) for k, v in np.load(golden / f"hpm_forward_{kind}.npz").items()
    }
    target = {"norm": "normalised", "raw": "pixels"}[kind]
    made = learner(
        file["state_dict"], arrays["images"], arrays["mask"] > 0,
        f"objective.target={target}", "objective.predict_loss=relative", "objective.epsilon=1e-6",
    )  # fmt: skip
    found = step(made, len(arrays["images"]))
    wanted = {
        "reconstruction": arrays["reconstruction_loss"],
        "loss_prediction": arrays["relative_loss"],
        "loss": arrays["reconstruction_loss"] + arrays["relative_loss"],
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-5, atol=0.0)


def test_maes_learner_gives_the_released_loss(golden: Path) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(golden / "mae_official.pth", weights_only=True)
    arrays = {k: torch.as_tensor(v) for k, v in np.load(golden / "mae_forward.npz").items()}
    made = learner(
        file["model"],
        arrays["images"],
        arrays["mask"] > 0,
        "objective.predict_loss=none",
        "objective.target=normalised",
    )
    found = step(made, len(arrays["images"]))
    torch.testing.assert_close(
        found["loss"].detach(), arrays["loss"].reshape(()), rtol=1e-5, atol=0.0
    )


def test_ibots_learner_gives_the_released_loss_and_centres(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {k: torch.as_tensor(v) for k, v in np.load(golden / "ibot_loss.npz").items()}
    outputs = arrays["center_before"].shape[-1]
    count = len(arrays["teacher_cls"]) // 2
    made = tiny_distill.learner(
        f"head.outputs={outputs}", "training.epochs=10", f"training.batch={count}",
        f"objective.student_temperature={float(arrays['student_temp'])}",
        f"objective.centre_momentum={float(arrays['center_momentum'])}",
        "objective.temperature_epochs=10",
    )  # fmt: skip
    made.criterion.centre.copy_(arrays["center_before"])
    made.criterion.patch_centre.copy_(arrays["patch_center_before"])
    said = Logits(arrays["teacher_cls"], arrays["teacher_patch"])
    mask = arrays["mask"].flatten(0, 1).flatten(1)
    shown: list[Tensor] = []

    def student(images: Tensor, hidden: Tensor, local: Tensor | None) -> Logits:
        shown.extend([images, hidden])
        return Logits(arrays["student_cls"], arrays["student_patch"], arrays["student_local_cls"])

    monkeypatch.setattr(type(made.teacher), "forward", lambda *_, **__: (said, None))
    monkeypatch.setattr(made, "hide", lambda *_: mask)
    at = StepInfo(step=15, steps_per_epoch=5, epochs=10, batch=count)
    batch = tiny_distill.batch(count)
    found = made.loss(student, batch, at)  # pyright: ignore[reportArgumentType]
    for name, wanted in (("cls", "cls_loss"), ("patch", "patch_loss"), ("loss", "loss")):
        torch.testing.assert_close(found[name], arrays[wanted], rtol=1e-5, atol=0.0)
    # crop after crop, normalised by ImageNet's statistics
    first = batch.data["global"][:, 0].float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(shown[0][:count], (first - mean) / std)
    assert shown[1] is mask
    made.after_update(StepInfo(step=16, steps_per_epoch=5, epochs=10, batch=count))
    torch.testing.assert_close(made.criterion.centre, arrays["center_after"])
    torch.testing.assert_close(made.criterion.patch_centre, arrays["patch_center_after"])


def test_both_crops_masks_keep_the_crops_order() -> None:
    """The masks of the second crop lie behind those of the first, as the crops do."""
    made = tiny_distill.learner("mask.order=high", "amount.probability=1.0", "amount.start_epoch=0")
    count, n = 4, 16
    attention = torch.zeros(2 * count, n)
    attention[:count, :2] = 1.0
    attention[count:, -2:] = 1.0
    found = made.hide(attention, count, tiny_distill.at())
    hidden = found.sum(1) >= 2
    assert hidden.any()
    assert found[:count][hidden[:count]][:, :2].all()
    assert found[count:][hidden[count:]][:, -2:].all()


def test_automaes_learner_gives_the_released_losses(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(golden / "automae.npz").items()}
    spec = VitSpec(embed_dim=48, depth=2, num_heads=12, mlp_dim=96, patch_size=4, grid=(14, 14))
    beta, weight = float(arrays["beta"]), float(arrays["adversarial_weight"])
    count = len(arrays["images"])
    config = read_config(
        "mae_vit_base_16",
        [
            *SMALL, "encoder.patch=4", "encoder.heads=12", "encoder.depth=2", "data.image_size=56",
            f"training.batch={count}", "mask.name=adversarial", f"mask.boost={beta}",
            f"mask.weight={weight}", "mask.maps=raw", "objective.predict_loss=none",
        ],
    )  # fmt: skip
    made = AdversarialPretraining(config, torch.device("cpu"), Path("unused"))
    assert made.spec.grid == spec.grid
    made.student = made.model = released_model(arrays, spec, Strategy(boost=beta, weight=weight))
    made.discriminator = released_critic(arrays)
    made.prepare = lambda images: (arrays["images"], to_patches(arrays["images"], 4))
    made.salience = lambda images, patches: arrays["attention"]
    made.step_discriminator = lambda at: None
    monkeypatch.setattr(adversarial, "rectangles", lambda *_: arrays["rectangle_maps"])
    noise = arrays["noise"], arrays["gumbel"]
    monkeypatch.setattr(type(made.strategy), "noise", lambda *_: noise)
    at = StepInfo(step=0, steps_per_epoch=3, epochs=10, batch=count)
    batch = Batch(torch.arange(count), torch.zeros(count, 3, 56, 56, dtype=torch.uint8), ())
    found = made.loss(made.model, batch, at)
    wanted = {
        "reconstruction": arrays["reconstruction_loss"],
        "adversarial": arrays["adversarial_loss"],
        "critic_rectangles": arrays["discriminator_real_loss"],
        "critic_samples": arrays["discriminator_fake_loss"],
        "loss": arrays["reconstruction_loss"] + weight * arrays["adversarial_loss"],
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].detach(), value, rtol=1e-4, atol=0.0)
    grads = part(arrays, "grad_discriminator/")
    grad = made.discriminator.get_parameter("first.weight").grad
    assert grad is not None
    assert (grad - grads["conv1.0.weight_orig"]).abs().max() < 1e-4 * grad.abs().max()


def test_pretraining_normalises_with_the_means_in_their_order() -> None:
    """Red's mean for blue passed every test: the statistics were nowhere compared channel by channel."""
    config = read_config("mae_vit_base_16", list(SMALL))
    made = Pretraining(config, torch.device("cpu"), Path("unused"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    normalised, patches = made.prepare(images)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        wanted = (images[:, channel].float() / 255 - mean) / std
        torch.testing.assert_close(normalised[:, channel], wanted)
    assert torch.equal(patches, to_patches(normalised, 16))


def tuner(data: Path, spec: VitSpec, **changes: Any) -> FineTune:
    mapping: dict[str, Any] = {
        "image_size": 32, "resize": None, "batch": 8, "epochs": 2, "warmup": 0, "lr": 1e-3,
        "precision": "fp32", "recipe": "mae", "machine": Machine(device="cpu", workers=0),
        "data": data, **changes,
    }  # fmt: skip
    config = Config(**mapping)
    return FineTune(random_weights(spec, 0), config, config.images()[1], Ranks())


def test_fine_tuning_has_the_recipes_drop_path_and_mixes_images(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", train=4, val=2)
    made = tuner(data, small_spec, drop_path=0.3)
    rates = sorted(layer.drop_prob for layer in made.depth.layers)
    # two in each block, from 0 in the first block (which has none) to the whole rate in the last
    assert rates == pytest.approx(sorted(2 * [0.1, 0.2, 0.3]), abs=1e-6)
    assert all(layer.training for layer in made.depth.layers)
    images = torch.randn(8, 3, 32, 32)
    labels = torch.arange(8) % 4
    seen: list[Tensor] = []

    class Shows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 4)

    batch: Any = Batch(torch.arange(8), [images.clone(), labels], ())
    made.loss(Shows(), batch, AT)
    assert made.mix is not None
    mixed, _ = made.mix(images.clone(), labels, step=AT.step, first=AT.first)
    assert torch.equal(seen[0], mixed)
    changed = (seen[0] != images).flatten(1).any(1)
    assert changed.float().mean() > 0.5


class KnowsItsMode(nn.Module):
    """Names class 3 in evaluation and class 1 in training, as dropout and drop path would tell."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 6)
        logits[:, 1 if self.training else 3] = 1.0
        return logits


def test_val_is_scored_in_evaluation_mode_and_training_goes_on_after_it(
    painted_images: Callable[..., Path], small_spec: VitSpec, tmp_path: Path
) -> None:
    data = painted_images(tmp_path / "data", train=1, val=2)
    _, val = Config(data=data, image_size=32, resize=None).images()
    model = KnowsItsMode().train()
    found = predict(
        model, small_spec, val, Preprocess(size=32, resize=None),
        Machine(device="cpu", workers=0, max_batch=3), ranks=Ranks(), precision="fp32",
    )  # fmt: skip
    assert found.shape == (len(val), 5)
    assert (found[:, 0] == 3).all()
    assert model.training


def test_distillations_class_token_starts_as_wide_as_dinos() -> None:
    """timm starts it near zero (1e-6), DINO at 0.02 like its positions."""
    made = tiny_distill.learner("encoder.width=96", "encoder.heads=4")
    token = made.student.backbone.cls_token
    assert token is not None
    assert 0.015 < float(token.detach().std()) < 0.025
    assert float(token.detach().abs().max()) < 0.1
