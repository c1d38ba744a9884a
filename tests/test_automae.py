"""AutoMAE's acceptance list, of its networks: generator, sampling, masks, rectangles, critic."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.masks import MaskInput
from pretrain.masks.adversarial import Strategy
from pretrain.models.autoencoder import DecoderConfig, take
from pretrain.models.generator import (
    AdversarialAutoencoder,
    Discriminator,
    Generator,
    lay_rectangles,
    rectangles,
    shown,
)
from pretrain.models.reconstruction import pixel_loss

GRID = (14, 14)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(batch: int, **more: Any) -> MaskInput:
    return MaskInput(batch=batch, grid=GRID, device=torch.device("cpu"), **more)


@pytest.mark.parametrize(("heads", "grid"), [(12, (14, 14)), (6, (14, 14)), (16, (8, 6))])
def test_1_generator(heads: int, grid: tuple[int, int]) -> None:
    generator = Generator(heads)
    found = generator(torch.rand(3, heads, grid[0] * grid[1]), grid)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))
    if heads == 12:
        assert sum(p.numel() for p in generator.parameters()) == 709


def test_2_sampling_follows_the_probabilities() -> None:
    chances = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    n, strategy = 20_000, Strategy()
    inp = MaskInput(batch=n, grid=(2, 2), device=torch.device("cpu"))
    _, gumbel = strategy.noise(inp, rng())
    logits = chances.expand(n, -1).clone().requires_grad_()
    sample = strategy.draw(logits, gumbel, torch.zeros(n, 4)).sample
    torch.testing.assert_close(sample.sum(1), torch.ones(n))
    counts = torch.bincount(sample.argmax(1), minlength=4)
    expected = chances.exp() * n
    # 3 degrees of freedom: 16.3 is passed by chance once in a thousand
    assert ((counts - expected).square() / expected).sum() < 16.3
    (sample * torch.arange(4.0)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_3_straight_through() -> None:
    strategy = Strategy(boost=1.0)
    logits = torch.randn(3, 196, generator=rng()).log_softmax(1).requires_grad_()
    draw = strategy.draw(logits, torch.zeros(3, 196), torch.zeros(3, 196))
    values = draw.scores.detach()
    assert (values.sum(1) - 49).abs().max() < 1e-4
    assert torch.minimum(values.abs(), (values - 1).abs()).max() < 1e-6
    weights = torch.randn(3, 196, generator=rng(1))
    through, direct = (
        torch.autograd.grad((weights * value).sum(), logits, retain_graph=True)[0]
        for value in (draw.scores, draw.sample)
    )
    assert torch.equal(through, direct)


def small_model(strategy: Strategy, seed: int = 0) -> AdversarialAutoencoder:
    torch.manual_seed(seed)
    spec = VitSpec(embed_dim=24, depth=1, num_heads=2, mlp_dim=48, patch_size=2, grid=(6, 6))
    shape = DecoderConfig(width=16, depth=1, heads=2)
    return AdversarialAutoencoder(spec, shape, strategy, heads=2, outputs=None, predictor=False)


def small_inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source = rng(5)
    attention = torch.rand(batch, 2, 36, generator=source)
    inp = MaskInput(batch=batch, grid=(6, 6), device=torch.device("cpu"))
    noise, gumbel = Strategy().noise(inp, source)
    return torch.randn(batch, 36, 12, generator=source), attention, gumbel, noise


def test_4_the_carrier_changes_no_value_and_tells_scores_their_gradient() -> None:
    scores = torch.rand(2, 5, 1, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, 3, dtype=torch.float64)
    carried = scores * tokens + (1 - scores).detach() * tokens
    torch.testing.assert_close(carried, tokens)
    (weights * carried).sum().backward()
    torch.testing.assert_close(tokens.grad, weights)
    torch.testing.assert_close(scores.grad, (weights * tokens).detach().sum(-1, keepdim=True))
    # in the model: the same prediction with and without the carrier's gradient
    one, other = small_model(Strategy()), small_model(Strategy(reconstruction_gradient=False))
    inputs = small_inputs()
    torch.testing.assert_close(one(*inputs).outputs.prediction, other(*inputs).outputs.prediction)


@pytest.mark.parametrize("boost", [0.0, 0.2, 0.5, 2.0])
def test_5_counts_and_mae_without_boost(boost: float) -> None:
    strategy = Strategy(boost=boost)
    chances = torch.randn(30, 196, generator=rng()).log_softmax(1)
    mask = strategy(look(30, log_probability=chances), rng(1))
    assert mask.sum(1).tolist() == [147] * 30
    plain = masks.build({"name": "random"})(look(30), rng(1))
    assert torch.equal(mask, plain) == (boost == 0)


@pytest.mark.parametrize(
    ("boost", "raised", "others"), [(0.5, 1.0, 2 / 3), (0.2, 0.901, 0.700), (0.1, 0.826, 0.725)]
)
def test_6_how_often_raised_patches_are_hidden(boost: float, raised: float, others: float) -> None:
    n = 4_000
    strategy = Strategy(boost=boost)
    noise, gumbel = strategy.noise(look(n), rng())
    draw = strategy.draw(torch.full((n, 196), -math.log(196)), gumbel, noise)
    top = masks.hide_largest(draw.sample, 49)
    assert abs(draw.mask[top].float().mean() - raised) < 0.005
    assert abs(draw.mask[~top].float().mean() - others) < 0.005


def generator_gradient(strategy: Strategy) -> Tensor | None:
    model = small_model(strategy)
    model.generator.requires_grad_(requires_grad=True)
    patches, attention, gumbel, noise = small_inputs()
    found = model(patches, attention, gumbel, noise)
    loss = pixel_loss(found.outputs.prediction, take(patches, found.hidden)).mean()
    first: Any = model.generator.net[0]
    return torch.autograd.grad(loss, first.weight, allow_unused=True)[0]


def test_7_reconstruction_reaches_the_generator_through_the_carrier_alone() -> None:
    found = generator_gradient(Strategy())
    assert found is not None
    assert found.abs().sum() > 0
    assert generator_gradient(Strategy(reconstruction_gradient=False)) is None


def test_8_rectangles() -> None:
    n = 20_000
    inp = look(n)
    maps = rectangles(inp, rng())
    torch.testing.assert_close(maps.sum(1), torch.ones(n))
    assert torch.equal(maps, rectangles(inp, rng()))
    inside = lay_rectangles(GRID, inp.uniform(rng(3), 4)).float()
    share = inside.mean((1, 2))
    assert abs(share.mean() - 0.419) < 0.01
    low, high = (share.quantile(q).item() for q in (0.05, 0.95))
    assert abs(low - 0.24) < 0.02
    assert abs(high - 0.64) < 0.02
    assert abs(inside.any(2).all(1).float().mean() - 0.57) < 0.01
    rate = inside.mean(0)
    assert abs(rate[7, 7] - 0.75) < 0.01
    assert abs(rate[0, 0] - 0.08) < 0.01
    assert (inside.any(1).sum(1) >= 4).all()
    assert (inside.any(1).sum(1) <= 10).all()
    assert abs(maps.std(1).mean() - 0.002) < 0.0005


def test_8_rectangles_on_other_grids() -> None:
    for grid in ((4, 4), (6, 10), (32, 32)):
        inside = lay_rectangles(grid, torch.rand(500, 4, generator=rng()))
        assert inside.any(2).any(1).all()
        assert 0.3 < inside.float().mean() < 0.55


def test_9_critic() -> None:
    critic = Discriminator(GRID)
    assert sum(p.numel() for p in critic.parameters()) == 8_736
    assert critic(torch.rand(5, 196)).shape == (5,)
    for _ in range(200):
        critic.power_step()
    for layer in (critic.first, critic.second, critic.third):
        assert layer.bias is None
        largest = torch.linalg.matrix_norm(layer.normalised().flatten(1), 2)
        assert abs(largest - 1) < 0.01
    assert Discriminator((6, 10))(torch.rand(2, 60)).shape == (2,)
    with pytest.raises(UserError, match="at least 4 x 4 patches"):
        Discriminator((3, 8))


def test_9_the_critics_norms_are_estimated_in_full_precision() -> None:
    torch.manual_seed(0)
    one, other = Discriminator((8, 8)), Discriminator((8, 8))
    other.load_state_dict(one.state_dict())
    one.power_step()
    with torch.autocast("cpu", torch.bfloat16):
        other.power_step()
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_9_what_the_critic_may_be_shown() -> None:
    maps = torch.rand(4, 196, generator=rng()).softmax(1)
    assert shown(maps, "raw") is maps
    torch.testing.assert_close(shown(maps, "log").exp(), maps)
    standard = shown(maps, "standard")
    assert standard.mean(1).abs().max() < 1e-4
    assert (standard.std(1) - 1).abs().max() < 1e-4
