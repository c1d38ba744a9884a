"""AutoMAE: every number of the released code's step, and the acceptance list of its method."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.backbone import build_backbone
from mimbench.batches import Batch
from mimbench.checkpoints import write_weights
from mimbench.errors import UserError
from mimbench.learner import Moment, Place
from mimbench.loop import fit
from mimbench.runtime import Ranks
from mimbench.snapshots import read_state
from mimbench.task import Machine
from mimbench.weights import VitSpec, VitWeights, random_weights
from pretrain import masks
from pretrain.adversarial import AdversarialPretraining
from pretrain.attention import backbone_attention
from pretrain.blocks import Mlp
from pretrain.config import Config, read_config
from pretrain.generator import (
    AdversarialAutoencoder,
    Discriminator,
    Generator,
    lay_rectangles,
    rectangles,
    shown,
)
from pretrain.layouts import from_official, to_official
from pretrain.learner import Pretraining
from pretrain.masks import MaskInput
from pretrain.masks.adversarial import Strategy
from pretrain.model import DecoderConfig, take, to_patches
from pretrain.objective import normalise_patches, pixel_loss
from pretrain.stored import read_model

GRID = (14, 14)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(batch: int, **more: Any) -> MaskInput:
    return MaskInput(batch=batch, grid=GRID, device=torch.device("cpu"), **more)


def close(found: Tensor, wanted: Tensor, what: str = "", tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape, what
    error = (found.detach() - wanted).abs().max() / wanted.abs().max()
    assert error < tolerance, f"{what}: {error}"


# the released code's step, number by number -------------------------------------------------------


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
    images = arrays["images"] * backbone.std + backbone.mean
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


# the acceptance list ------------------------------------------------------------------------------


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


def test_9_what_the_critic_may_be_shown() -> None:
    maps = torch.rand(4, 196, generator=rng()).softmax(1)
    assert shown(maps, "raw") is maps
    torch.testing.assert_close(shown(maps, "log").exp(), maps)
    standard = shown(maps, "standard")
    assert standard.mean(1).abs().max() < 1e-4
    assert (standard.std(1) - 1).abs().max() < 1e-4


# the learner --------------------------------------------------------------------------------------

TINY = [
    "encoder.patch=4",
    "encoder.width=24",
    "encoder.depth=2",
    "encoder.heads=2",
    "decoder.width=16",
    "decoder.depth=1",
    "decoder.heads=2",
    "data.image_size=32",
    "data.root=/nowhere",
    "objective.predict_loss=none",
    "training.precision=fp32",
    "training.batch=4",
    "training.epochs=3",
    "training.tensorboard=false",
    "training.save_every=1",
    "training.log_every=2",
    "optimizer.warmup_epochs=0",
    "optimizer.base_lr=0.05",
    "machine.device=cpu",
    "mask.name=adversarial",
]


def tiny(*overrides: str) -> Config:
    return read_config("mae_vit_base_16", [*TINY, *overrides])


def learner(config: Config, out: Path) -> AdversarialPretraining:
    torch.manual_seed(0)
    return AdversarialPretraining(config, torch.device("cpu"), out)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scorer") / "scorer.safetensors"
    spec = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4))
    write_weights(path, random_weights(spec, 3))
    return path


class Pictures:
    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=rng(index))

    def name(self, index: int) -> str:
        return f"{index}.png"


def batch(count: int = 4) -> Batch:
    return Batch(torch.arange(count), torch.stack([Pictures()[i] for i in range(count)]), ())


AT = Moment(step=0, steps_per_epoch=3, epochs=3, batch=4)


def run(out: Path, config: Config, *, max_batch: int = 4) -> AdversarialPretraining:
    made = learner(config, out)
    machine = Machine(max_batch=max_batch, workers=0, device="cpu")
    place = Place(out=out, digest="d", ranks=Ranks(), machine=machine)
    fit(made, Pictures(), config.loop(), place)
    return made


def everything(made: AdversarialPretraining) -> list[Tensor]:
    found = [*made.student.state_dict().values(), *made.rival.state_dict().values()]
    for optimizer in (made.optimizer, made.rival_optimizer):
        found += [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq", "step")]
    if made.teacher is not None:
        found += list(made.teacher.state_dict().values())
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_10_values_and_whose_gradients(tmp_path: Path) -> None:
    made = learner(tiny(), tmp_path)
    made.rival.forward = lambda maps: torch.full((len(maps),), 0.5, requires_grad=True)
    inp = MaskInput(batch=4, grid=(8, 8), device=torch.device("cpu"))
    made.step_rival = lambda at: None
    figures = made.train_rival(torch.rand(4, 2, 64), inp, AT)
    assert figures["critic_rectangles"] + figures["critic_samples"] == 0.5
    made.rival.forward = lambda maps: torch.zeros(len(maps))
    assert made.judge(torch.rand(4, 64).softmax(1)) == 1


def test_10_the_generators_step_leaves_the_critic_alone(tmp_path: Path) -> None:
    made = learner(tiny(), tmp_path)
    figures = made.loss(made.student, batch(), AT)
    before = [p.grad.clone() for p in made.rival.parameters() if p.grad is not None]
    figures["loss"].backward()
    after = [p.grad for p in made.rival.parameters() if p.grad is not None]
    assert len(before) == 3
    assert same(before, after)
    assert all(p.grad is not None for p in made.student.generator.parameters())
    total = figures["reconstruction"] + 0.2 * figures["adversarial"]
    torch.testing.assert_close(figures["loss"].detach(), total)


def test_11_the_scorer_stays_as_it_is(tmp_path: Path, scorer: Path) -> None:
    config = tiny(f"mask.scorer={scorer}")
    made = run(tmp_path, config)
    fresh = learner(config, tmp_path)
    assert made.scorer is not None
    assert fresh.scorer is not None
    assert same(list(made.scorer.state_dict().values()), list(fresh.scorer.state_dict().values()))
    ours = {id(p) for p in made.scorer.parameters()}
    for optimizer in (made.optimizer, made.rival_optimizer):
        assert not ours & {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert made.teacher is None
    assert made.student.generator.net[0].weight.shape == (1, 3, 3, 3)
    # 8-pixel patches of the scorer, 4-pixel patches here: images grow until the grids agree
    assert made.salience(batch().data, torch.zeros(4, 64, 48)).shape == (4, 3, 64)


def test_12_without_any_gradient_the_generator_stays(tmp_path: Path) -> None:
    config = tiny("mask.weight=0", "mask.reconstruction_gradient=false")
    made, fresh = run(tmp_path, config), learner(config, tmp_path)
    one, other = (list(m.student.generator.state_dict().values()) for m in (made, fresh))
    assert same(one, other)
    # and with either of them it moves
    for index, change in enumerate(("mask.weight=0", "mask.reconstruction_gradient=false")):
        moved = run(tmp_path / str(index), tiny(change))
        assert not same(list(moved.student.generator.state_dict().values()), other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scorer: Path) -> list[Tensor]:
    return everything(run(tmp_path_factory.mktemp("whole"), tiny(f"mask.scorer={scorer}")))


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize(("where", "count"), [("train_rival", 5), ("after_update", 7)])
def test_13_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, scorer: Path, whole: list[Tensor], where: str, count: int, monkeypatch: Any
) -> None:
    config = tiny(f"mask.scorer={scorer}")
    original = getattr(AdversarialPretraining, where)
    left = [count]

    def bomb(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(AdversarialPretraining, where, bomb)
        with pytest.raises(Killed):
            run(tmp_path, config)
    assert 0 < read_state(tmp_path / "checkpoints" / "last.pt")["step"] < 9
    assert same(everything(run(tmp_path, config)), whole)


def test_13_another_scorer_is_refused(tmp_path: Path, scorer: Path) -> None:
    run(tmp_path, tiny(f"mask.scorer={scorer}", "training.steps=2"))
    other = tmp_path / "other.safetensors"
    spec = VitSpec(embed_dim=48, depth=2, num_heads=3, mlp_dim=96, patch_size=8, grid=(4, 4))
    write_weights(other, random_weights(spec, 4))
    with pytest.raises(UserError, match="not the network with which this run began"):
        run(tmp_path, tiny(f"mask.scorer={other}"))


def test_14_micro_batches_give_the_critic_the_same_gradient(tmp_path: Path) -> None:
    made, parts = learner(tiny(), tmp_path), learner(tiny(), tmp_path)
    attention = torch.rand(4, 2, 64, generator=rng())
    inp = MaskInput(batch=4, grid=(8, 8), device=torch.device("cpu"))
    made.train_rival(attention, inp, AT)
    for first in (0, 2):
        at = Moment(step=0, steps_per_epoch=3, epochs=3, batch=4, first=first)
        part_of = MaskInput(batch=2, grid=(8, 8), device=torch.device("cpu"), first=first, whole=4)
        parts.train_rival(attention[first : first + 2], part_of, at)
    for one, other in zip(made.rival.parameters(), parts.rival.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_15_two_stages_and_files(tmp_path: Path) -> None:
    first = run(tmp_path / "one", tiny())
    stored = read_model(tmp_path / "one")
    student, _ = stored.build()
    assert not any(n.startswith("generator") for n in student.state_dict())
    config = tiny(f"mask.generator_from={tmp_path / 'one'}", "mask.train_generator=false")
    second = run(tmp_path / "two", config)
    one, other = (list(m.student.generator.state_dict().values()) for m in (first, second))
    assert same(one, other)
    plain = tiny("mask.name=random")
    assert "generator" not in masks.build(plain.mask).needs
    with pytest.raises(UserError, match="holds no mask generator"):
        learner(tiny(f"mask.generator_from={_plain_run(tmp_path)}"), tmp_path)


def _plain_run(tmp_path: Path) -> Path:
    out, config = tmp_path / "plain", tiny("mask.name=random", "training.steps=1")
    place = Place(out=out, digest="d", machine=Machine(max_batch=4, workers=0, device="cpu"))
    fit(Pretraining(config, torch.device("cpu"), out), Pictures(), config.loop(), place)
    return out


def test_wrong_settings_say_so() -> None:
    with pytest.raises(ValueError, match="boost is -1"):
        Strategy(boost=-1)


def test_the_digest_ignores_where_the_networks_lie(tmp_path: Path, scorer: Path) -> None:
    here, there = (tiny(f"mask.scorer={p}").digest() for p in (scorer, tmp_path / "moved.pth"))
    assert here == there
    assert here != tiny().digest()
    assert read_config("automae_vit_base_16", []).mask == {"name": "adversarial", "ratio": 0.75}
