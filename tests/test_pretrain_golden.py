"""Same weights, images and masks as the released code: same outputs, losses and gradients."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.checkpoints.layouts import from_official, to_official
from pretrain.checkpoints.stored import start_from
from pretrain.masks.hard import Strategy as Hard
from pretrain.models.autoencoder import (
    DecoderConfig,
    MaskedAutoencoder,
    Outputs,
    split,
    take,
    to_patches,
)
from pretrain.models.reconstruction import (
    absolute_loss,
    normalise_patches,
    pair_signs,
    pixel_loss,
    relative_loss,
)
from pretrain.models.teacher import Teacher

TOLERANCE = 1e-5
DECODER = DecoderConfig(width=32, depth=2, heads=4)


def close(found: Tensor, wanted: Any, what: str = "", tolerance: float = TOLERANCE) -> None:
    """Compare in the largest magnitude of the whole tensor."""
    wanted = torch.as_tensor(wanted)
    assert found.shape == wanted.shape, what
    error = (found.detach() - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance, f"{what}: {error}"


def student(state: dict[str, Tensor], spec: VitSpec, *, predictor: bool) -> MaskedAutoencoder:
    model = MaskedAutoencoder(spec, DECODER, outputs=None, predictor=predictor)
    model.load_state_dict(from_official(state))
    return model


@pytest.fixture(params=["norm", "raw"])
def case(request: pytest.FixtureRequest, golden: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    name = request.param
    file = torch.load(golden / f"hpm_official_{name}.pth", weights_only=True)
    arrays = dict(np.load(golden / f"hpm_forward_{name}.npz"))
    arrays["normalise"] = name == "norm"
    return file, arrays


def forward(model: MaskedAutoencoder, arrays: dict[str, Any]) -> tuple[Outputs, Tensor, Tensor]:
    """Return outputs, per-patch reconstruction losses, and patches."""
    patches = to_patches(torch.from_numpy(arrays["images"]), 16)
    visible, hidden = split(torch.from_numpy(arrays["mask"]), 12)
    outputs = model(patches, visible, hidden)
    target = take(patches, hidden)
    if arrays["normalise"]:
        target = normalise_patches(target)
    return outputs, pixel_loss(outputs.prediction, target), patches


def test_outputs_and_losses(case: Any, tiny_spec: VitSpec) -> None:
    file, arrays = case
    model = student(file["state_dict"], tiny_spec, predictor=True)
    outputs, losses, _ = forward(model, arrays)
    assert outputs.difficulty is not None
    close(outputs.latent, arrays["latent"])
    close(outputs.prediction, arrays["pixel_prediction_masked"])
    close(outputs.difficulty, arrays["predicted_loss_masked"])
    close(losses, arrays["reconstruction_loss_per_patch"])
    close(losses.mean(), arrays["reconstruction_loss"])
    signs = pair_signs(losses)
    close(relative_loss(outputs.difficulty, signs, epsilon=1e-6), arrays["relative_loss"])
    close(relative_loss(outputs.difficulty, signs), arrays["relative_loss"])
    close(absolute_loss(outputs.difficulty, losses), arrays["absolute_loss"])


def test_every_gradient(case: Any, tiny_spec: VitSpec) -> None:
    file, arrays = case
    model = student(file["state_dict"], tiny_spec, predictor=True)
    outputs, losses, _ = forward(model, arrays)
    assert outputs.difficulty is not None
    relative = relative_loss(outputs.difficulty, pair_signs(losses), epsilon=1e-6)
    (losses.mean() + relative).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    wanted = {k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}
    # each of the released head's 768 averaged outputs receives 1/768 of our one output's gradient
    found = to_official(gradients, pixels=768)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        share = 768 if name.startswith("decoder_pred_losspred") else 1
        if name in {"decoder_norm_losspred.bias", "decoder_pred_losspred.bias"}:
            # these shift all predicted losses alike, the relative loss sees differences only:
            # the gradient is rounding around zero
            assert gradient.abs().max() < 1e-6
            assert np.abs(wanted[name]).max() < 1e-6
        else:
            close(gradient / share, wanted[name], name)


def test_the_teacher_sees_whole_images(case: Any, tiny_spec: VitSpec) -> None:
    file, arrays = case
    model = student(file["state_dict"], tiny_spec, predictor=True)
    patches = to_patches(torch.from_numpy(arrays["images"]), 16)
    views = Teacher(model)(patches, difficulty=True)
    assert views.difficulty is not None
    close(views.difficulty, arrays["predicted_loss_full_image"])
    close(views.features, arrays["latent_full_image"][:, 1:])


def test_key_sets_and_round_trip(case: Any, tiny_spec: VitSpec) -> None:
    file, _ = case
    official = {k.removeprefix("module."): v for k, v in file["state_dict"].items()}
    model = student(file["state_dict"], tiny_spec, predictor=True)
    again = to_official(model.state_dict(), pixels=768)
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in official.items()}
    for name, tensor in again.items():
        if not name.startswith("decoder_pred_losspred"):
            assert torch.equal(tensor, official[name]), name
    close(
        again["decoder_pred_losspred.weight"].mean(0),
        official["decoder_pred_losspred.weight"].mean(0),
    )
    assert from_official(file["ema_state_dict"]).keys() == model.state_dict().keys()


def test_mae(golden: Path, tiny_spec: VitSpec) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(golden / "mae_official.pth", weights_only=True)
    arrays = dict(np.load(golden / "mae_forward.npz"))
    model = student(file["model"], tiny_spec, predictor=False)
    mask = torch.from_numpy(arrays["mask"]) > 0
    outputs, losses, _ = forward(model, {**arrays, "mask": mask.numpy(), "normalise": True})
    assert outputs.difficulty is None
    _, hidden = split(mask, 12)
    wanted = take(torch.from_numpy(arrays["prediction"]), hidden).numpy()
    close(outputs.prediction, wanted, "prediction", 1e-6)
    close(losses.mean(), arrays["loss"], "loss", 1e-6)


def test_an_mae_state_leaves_only_the_predictor_unset(golden: Path, tiny_spec: VitSpec) -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(golden / "mae_official.pth", weights_only=True)
    model = MaskedAutoencoder(tiny_spec, DECODER, outputs=None, predictor=True)
    report = model.load_state_dict(from_official(file["model"]), strict=False)
    assert not report.unexpected_keys
    assert {k.split(".")[0] for k in report.missing_keys} == {"predictor"}
    groups = {k.split(".")[1] for k in report.missing_keys}
    assert groups == {"blocks", "norm", "pred"}


def test_mask_counts_and_hardest_patches(golden: Path) -> None:
    table = json.loads((golden / "hpm_mask.json").read_text())
    predicted = torch.from_numpy(np.load(golden / "hpm_mask.npz")["predicted_loss"])
    strategy = Hard(ratio=table["mask_ratio"])
    for row in table["rows"]:
        inp = masks.MaskInput(
            batch=len(predicted),
            grid=(14, 14),
            device=torch.device("cpu"),
            epoch_progress=(row["epoch"] + 1) / row["total"],
            difficulty=predicted,
        )
        assert strategy.hard_count(inp) == row["hard"]
        mask = strategy(inp, torch.Generator().manual_seed(row["epoch"]))
        assert mask.sum(1).tolist() == [row["masked"]] * len(predicted)
        hardest = predicted.argsort(dim=1, descending=True)[:, : row["hard"]]
        assert mask.gather(1, hardest).all()


@pytest.mark.parametrize("name", ["hpm_official_norm", "mae_official"])
def test_a_released_checkpoint_starts_a_run(
    name: str, golden: Path, tiny_spec: VitSpec, caplog: pytest.LogCaptureFixture
) -> None:
    """The files as they are: `module.` prefixes, a model that is a string, an argparse namespace."""
    path = golden / f"{name}.pth"
    with torch.serialization.safe_globals([argparse.Namespace]):
        file = torch.load(path, weights_only=True)
    model = MaskedAutoencoder(tiny_spec, DECODER, outputs=None, predictor=True)
    teacher = Teacher(model)
    untouched = {n: t.clone() for n, t in model.state_dict().items() if n.startswith("predictor")}
    caplog.set_level("INFO")
    done = start_from(path, model, teacher, num_heads=tiny_spec.num_heads)
    own, average = model.state_dict(), teacher.state_dict()
    if name == "mae_official":
        # MAE counts from 0 and stores the last epoch that was completed
        assert done == file["epoch"] + 1
        wanted = {**from_official(file["model"]), **untouched}
        assert "new: predictor" in caplog.text
        expected = own
    else:
        assert done == file["epoch"]
        wanted = from_official(file["state_dict"])
        expected = from_official(file["ema_state_dict"])
    for tensor_name, tensor in own.items():
        assert torch.equal(tensor, wanted[tensor_name].float()), tensor_name
    for tensor_name, tensor in average.items():
        assert torch.equal(tensor, expected[tensor_name].float()), tensor_name
