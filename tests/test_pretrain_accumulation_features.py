"""The acceptance list for Hard Patches Mining, 12 to 14: accumulation and other targets."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mimbench.checkpoints.files import write_weights
from mimbench.training.batches import Batch
from mimbench.vit.weights import VitWeights
from pretrain.models.autoencoder import to_patches
from pretrain.models.features import FeatureNetwork
from pretrain.models.reconstruction import (
    absolute_loss,
    feature_loss,
    normalise_patches,
)
from pretrain.objectives.learner import Pretraining
from pretrain.objectives.looking import Given
from tests.support.tiny_pretrain import images, learner, rng, scored, step_info

# 12 -----------------------------------------------------------------------------------------------


def test_accumulation_is_the_mean_of_the_totals() -> None:
    def gradient(run: Pretraining, parts: list[Batch]) -> list[Tensor]:
        run.student.zero_grad()
        for i, part in enumerate(parts):
            at = step_info(first=i * len(part.indices))
            (run.loss(run.student, part, at)["loss"] / len(parts)).backward()
        return [p.grad.clone() for p in run.student.parameters() if p.grad is not None]

    whole = images()
    halves = [Batch(whole.indices[s], whole.data[s], ()) for s in (slice(2), slice(2, 4))]
    run = learner()
    one, two = gradient(run, [whole]), gradient(run, halves)
    # without ties every image has the same number of pairs, so the means agree
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


# 13, 14 -------------------------------------------------------------------------------------------


def test_absolute_loss() -> None:
    s, losses = scored()
    targets = normalise_patches(losses)
    assert targets.mean(1).abs().max() < 1e-6
    assert (targets.var(1) - 1).abs().max() < 1e-4
    torch.testing.assert_close(absolute_loss(s, losses), (s - targets).square().mean())
    assert (absolute_loss(s + 1, losses) - absolute_loss(s, losses)).abs() > 0.1
    assert "loss_prediction" in learner("objective.predict_loss=absolute").loss(
        learner("objective.predict_loss=absolute").student, images(), step_info()
    )


def test_feature_loss() -> None:
    a, b = torch.randn(3, 5, 8, generator=rng(1)), torch.randn(3, 5, 8, generator=rng(2))
    cosine = nn.functional.cosine_similarity(a, b, dim=-1)
    torch.testing.assert_close(feature_loss(a, b), 2 - 2 * cosine)
    torch.testing.assert_close(feature_loss(a * 9, b / 3), feature_loss(a, b))
    assert feature_loss(a, -a).max() <= 4.0001


def test_ema_features_come_from_the_whole_image_without_class_token() -> None:
    run = learner("objective.target=ema", "mask.name=random", "objective.predict_loss=none")
    assert run.teacher is not None
    assert run.student.reconstructor.pred.out_features == 24
    batch = images()
    normalised = run.normalise.of_bytes(batch.data)
    patches = to_patches(normalised, 8)
    _, views = run.look(patches, normalised, Given.of(batch), step_info())
    assert views is not None
    assert views.difficulty is None
    torch.testing.assert_close(views.features, run.teacher.encoder(patches)[:, 1:])
    hidden = torch.tensor([[1, 5]] * 4)
    prediction = torch.randn(4, 2, 24, generator=rng())
    found = run.patch_losses(prediction, patches, batch.data, hidden, views)
    torch.testing.assert_close(found, feature_loss(prediction, views.features[:, [1, 5]]))


@pytest.mark.parametrize("target", ["dino", "clip"])
def test_features_of_another_network(
    target: str, tmp_path: Path, clip_file: Path, tiny_weights: VitWeights
) -> None:
    path = clip_file
    if target == "dino":
        path = tmp_path / "dino.safetensors"
        write_weights(path, tiny_weights)
    run = learner(
        f"objective.target={target}",
        f"objective.features_from={path}",
        "mask.name=random",
        "objective.predict_loss=relative",
    )
    assert run.features is not None
    assert run.features.width == run.student.reconstructor.pred.out_features
    assert run.features.width == (48 if target == "dino" else 512)
    # patches of 16 for ours of 8: the images are enlarged to as many patches
    features = run.features(images().data / 255)
    assert features.shape == (4, 16, run.features.width)
    figures = run.loss(run.student, images(), step_info())
    assert 0 < figures["reconstruction"] < 4
    assert figures["loss_prediction"] > 0
    figures["loss"].backward()
    assert all(p.grad is None for p in run.features.parameters())


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random visual tower under CLIP's names, one block deep, with its projection."""
    width, generator = 768, rng(5)
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (17, width),
        "conv1.weight": (width, 3, 16, 16),
        "proj": (width, 512),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    block = "transformer.resblocks.0."
    for name, shape in {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }.items():
        shapes[block + name] = shape
    state = {f"visual.{k}": torch.randn(v, generator=generator) * 0.02 for k, v in shapes.items()}
    state["logit_scale"] = torch.tensor(4.6)
    state["input_resolution"] = torch.tensor(64)  # OpenAI's files alone carry it: QuickGELU
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(state, path)
    return path


def test_clip_features_are_normalised_then_projected(clip_file: Path) -> None:
    network = FeatureNetwork(clip_file, (4, 4))
    pixels = torch.rand(2, 3, 64, 64, generator=rng())
    tokens = network.backbone(pixels).patches.flatten(1, 2)
    state = torch.load(clip_file, weights_only=True)
    torch.testing.assert_close(network(pixels), tokens @ state["visual.proj"])
