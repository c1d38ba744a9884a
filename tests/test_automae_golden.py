"""AutoMAE: every number of the released code's step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from pretrain.checkpoints.layouts import from_official, to_official
from pretrain.masks.adversarial import Strategy
from pretrain.models.attention import backbone_attention
from pretrain.models.autoencoder import DecoderConfig, take, to_patches
from pretrain.models.blocks import Mlp
from pretrain.models.generator import AdversarialAutoencoder, Discriminator
from pretrain.models.reconstruction import normalise_patches, pixel_loss

GRID = (14, 14)


def close(found: Tensor, wanted: Tensor, what: str = "", tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape, what
    error = (found.detach() - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance, f"{what}: {error}"


def part(arrays: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name): v for k, v in arrays.items() if k.startswith(name)}


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(golden / "automae.npz").items()}


@pytest.fixture(scope="module")
def spec() -> VitSpec:
    return VitSpec(embed_dim=48, depth=2, num_heads=12, mlp_dim=96, patch_size=4, grid=GRID)


@pytest.fixture
def strategy(arrays: dict[str, Tensor]) -> Strategy:
    return Strategy(boost=float(arrays["beta"]), weight=float(arrays["adversarial_weight"]))


def released_model(arrays: dict[str, Tensor], spec: VitSpec, strategy: Strategy) -> Any:
    shape = DecoderConfig(width=32, depth=1, heads=4)
    model = AdversarialAutoencoder(spec, shape, strategy, heads=12, outputs=None, predictor=False)
    # the reference's decoder has a narrower MLP than MAE's
    block: Any = model.reconstructor.blocks[0]
    block.mlp = Mlp(32, 64)
    model.load_state_dict(from_official(part(arrays, "model/")))
    return model


def released_critic(arrays: dict[str, Tensor]) -> Discriminator:
    critic = Discriminator(GRID)
    state = {}
    for ours, theirs in (("first", "conv1.0"), ("second", "conv2.0"), ("third", "conv3.0")):
        for name, kind in (("weight", "orig"), ("left", "u"), ("right", "v")):
            state[f"{ours}.{name}"] = arrays[f"discriminator/{theirs}.weight_{kind}"]
    critic.load_state_dict(state)
    return critic


def reconstruct(model: Any, arrays: dict[str, Tensor]) -> tuple[Any, Tensor]:
    patches = to_patches(arrays["images"], 4)
    found = model(patches, arrays["attention"], arrays["gumbel"], arrays["noise"])
    target = normalise_patches(take(patches, found.hidden))
    return found, pixel_loss(found.outputs.prediction, target).mean()


def test_attention_of_the_released_scorer(arrays: dict[str, Tensor], spec: VitSpec) -> None:
    state = part(arrays, "scorer/")
    names = random_weights(spec, 0).tensors
    weights = VitWeights(
        spec=spec, tensors={n: state[n] for n in names}, format="mae", digest="golden"
    )
    backbone = build_backbone(weights)
    images = backbone.normalise.inverse(arrays["images"])
    close(backbone_attention(backbone, images), arrays["attention"])


def test_sample_mask_and_losses(
    arrays: dict[str, Tensor], spec: VitSpec, strategy: Strategy
) -> None:
    model = released_model(arrays, spec, strategy)
    close(model.generator(arrays["attention"], GRID), arrays["log_probability"])
    found, loss = reconstruct(model, arrays)
    close(found.draw.sample, arrays["sample"])
    assert torch.equal(found.draw.mask, arrays["mask"] > 0)
    close(loss, arrays["reconstruction_loss"])
    critic = released_critic(arrays)
    real, fake = critic(arrays["rectangle_maps"]), critic(arrays["sample"])
    close((real - 1).square().mean(), arrays["discriminator_real_loss"])
    close(fake.square().mean(), arrays["discriminator_fake_loss"], tolerance=1e-4)
    close((fake - 1).square().mean(), arrays["adversarial_loss"])


def test_gradients_of_the_critic(arrays: dict[str, Tensor]) -> None:
    critic = released_critic(arrays)
    real, fake = critic(arrays["rectangle_maps"]), critic(arrays["sample"])
    ((real - 1).square().mean() + fake.square().mean()).backward()
    for ours, theirs in (("first", "conv1.0"), ("second", "conv2.0"), ("third", "conv3.0")):
        grad = critic.get_parameter(f"{ours}.weight").grad
        assert grad is not None
        close(grad, arrays[f"grad_discriminator/{theirs}.weight_orig"], theirs)


@pytest.mark.parametrize("which", ["reconstruction", "total"])
def test_gradients_of_encoder_decoder_and_generator(
    arrays: dict[str, Tensor], spec: VitSpec, strategy: Strategy, which: str
) -> None:
    model = released_model(arrays, spec, strategy)
    found, loss = reconstruct(model, arrays)
    if which == "total":
        critic = released_critic(arrays)
        loss = loss + strategy.weight * (critic(found.draw.sample) - 1).square().mean()
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    wanted = part(arrays, f"grad_{which}/")
    official = to_official(gradients, pixels=48)
    assert official.keys() == wanted.keys()
    for name, gradient in official.items():
        if name == "scorer_pred.main.2.bias":
            # it shifts all logits alike: rounding around zero
            assert gradient.abs().max() < 1e-8
        elif name.startswith("scorer_pred"):
            assert torch.cosine_similarity(gradient.flatten(), wanted[name].flatten(), 0) > 0.999999
            close(gradient, wanted[name], name, tolerance=1e-3)
        else:
            close(gradient, wanted[name], name, tolerance=5e-5)
