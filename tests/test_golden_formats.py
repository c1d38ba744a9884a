"""Reference checkpoints reproduce the reference implementations' latents, features and logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit, write_weights
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.weights import VitWeights


def normalised(weights: VitWeights) -> Backbone:
    """Return a backbone for the reference images, which are normalised already."""
    return build_backbone(weights.with_spec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_hpm_latents_of_full_images(kind: str, golden: Path) -> None:
    wanted = arrays(golden / f"hpm_forward_{kind}.npz")
    weights = read_vit(golden / f"hpm_official_{kind}.pth", num_heads=3)
    assert (weights.format, weights.which) == ("hpm", "student")
    assert {"decoder", "loss predictor", "mask token"} <= weights.extras.keys()
    features = normalised(weights)(wanted["images"])
    got = torch.cat([features.cls[:, None], features.patches.flatten(1, 2)], dim=1)
    torch.testing.assert_close(got, wanted["latent_full_image"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_hpm_latents_of_masked_images(kind: str, golden: Path) -> None:
    wanted = arrays(golden / f"hpm_forward_{kind}.npz")
    backbone = normalised(read_vit(golden / f"hpm_official_{kind}.pth", num_heads=3))
    tokens = backbone.vit.embed(wanted["images"])
    visible = ~wanted["mask"].bool().reshape(len(tokens), -1)
    rows = [torch.cat([t[:1], t[1:][v]]) for t, v in zip(tokens, visible, strict=True)]
    x = torch.stack(rows)
    for i in range(backbone.spec.depth):
        x = backbone.vit.run_block(i, x, (4, 4))
    got = backbone.vit.get_submodule("norm")(x)
    torch.testing.assert_close(got, wanted["latent"], atol=1e-5, rtol=1e-5)


def test_hpm_teacher_is_the_student_plus_a_hundredth(golden: Path) -> None:
    path = golden / "hpm_official_norm.pth"
    student, ema = (read_vit(path, which=w, num_heads=3) for w in ("student", "ema"))
    for name, tensor in student.tensors.items():
        torch.testing.assert_close(ema.tensors[name], tensor + 0.01, atol=1e-6, rtol=0)


def test_mae_training_file_with_a_namespace(golden: Path, tmp_path: Path) -> None:
    weights = read_vit(golden / "mae_official.pth", num_heads=3)
    assert weights.format == "mae"
    official = torch.load(golden / "mae_official.pth", weights_only=False)["model"]
    assert all(torch.equal(t, official[n]) for n, t in weights.tensors.items())
    assert weights.extras["decoder"] == sum(n.startswith("decoder_") for n in official)
    write_weights(tmp_path / "ours.safetensors", weights)
    images = torch.rand(2, 3, 64, 64)
    again = build_backbone(read_vit(tmp_path / "ours.safetensors"))(images)
    torch.testing.assert_close(again.patches, build_backbone(weights)(images).patches)


@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_fine_tuned_vit_features_and_logits(pool: str, golden: Path, tmp_path: Path) -> None:
    stored = arrays(golden / f"vit_{pool}_pool.npz")
    state = {n.removeprefix("weight/"): t for n, t in stored.items() if n.startswith("weight/")}
    torch.save({"model": state}, tmp_path / "vit.pth")
    weights = read_vit(tmp_path / "vit.pth", num_heads=3)
    assert weights.spec.pool == pool
    backbone = normalised(weights)
    pooled = backbone.pooled(backbone(stored["images"]))
    torch.testing.assert_close(pooled, stored["features"], atol=1e-5, rtol=1e-5)
    logits = nn.functional.linear(pooled, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(logits, stored["logits"], atol=1e-5, rtol=1e-5)
