"""AutoMAE's acceptance list, of its step and its runs: gradients, scorer, resumption, two stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.checkpoints.files import write_weights
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.training.batches import Batch
from mimbench.training.learner import RunContext, StepInfo
from mimbench.training.loop import fit
from mimbench.training.snapshots import read_state
from mimbench.vit.weights import VitSpec, random_weights
from pretrain import masks
from pretrain.checkpoints.stored import read_model
from pretrain.config import Config, read_config
from pretrain.masks import MaskInput
from pretrain.masks.adversarial import Strategy
from pretrain.objectives.adversarial import AdversarialPretraining
from pretrain.objectives.learner import Pretraining
from tests.support.tiny_pretrain import NETWORK


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


TINY = [
    *NETWORK,
    "encoder.patch=4",
    "encoder.depth=2",
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


AT = StepInfo(step=0, steps_per_epoch=3, epochs=3, batch=4)


def run(out: Path, config: Config, *, max_batch: int = 4) -> AdversarialPretraining:
    made = learner(config, out)
    machine = Machine(max_batch=max_batch, workers=0, device="cpu")
    context = RunContext(out=out, digest="d", config=to_mapping(config), machine=machine)
    fit(made, Pictures(), config.loop(), context)
    return made


def everything(made: AdversarialPretraining) -> list[Tensor]:
    found = [*made.student.state_dict().values(), *made.discriminator.state_dict().values()]
    for optimizer in (made.optimizer, made.rival_optimizer):
        found += [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq", "step")]
    if made.teacher is not None:
        found += list(made.teacher.state_dict().values())
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_10_values_and_whose_gradients(tmp_path: Path) -> None:
    made = learner(tiny(), tmp_path)
    made.discriminator.forward = lambda maps: torch.full((len(maps),), 0.5, requires_grad=True)
    inp = MaskInput(batch=4, grid=(8, 8), device=torch.device("cpu"))
    made.step_discriminator = lambda at: None
    figures = made.train_discriminator(torch.rand(4, 2, 64), inp, AT)
    assert figures["critic_rectangles"] + figures["critic_samples"] == 0.5
    made.discriminator.forward = lambda maps: torch.zeros(len(maps))
    assert made.judge(torch.rand(4, 64).softmax(1)) == 1


def test_10_the_generators_step_leaves_the_critic_alone(tmp_path: Path) -> None:
    made = learner(tiny(), tmp_path)
    figures = made.loss(made.student, batch(), AT)
    before = [p.grad.clone() for p in made.discriminator.parameters() if p.grad is not None]
    figures["loss"].backward()
    after = [p.grad for p in made.discriminator.parameters() if p.grad is not None]
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


def test_12_without_weight_the_critic_is_left_out(tmp_path: Path) -> None:
    made = learner(tiny("mask.weight=0"), tmp_path)
    figures = made.loss(made.model, batch(), StepInfo(step=0, steps_per_epoch=2, epochs=3, batch=4))
    assert not {"adversarial", "critic_rectangles", "critic_samples"} & set(figures)
    assert torch.equal(figures["loss"], figures["reconstruction"])
    assert all(p.grad is None for p in made.discriminator.parameters())
    weighed = learner(tiny("mask.weight=0.1"), tmp_path)
    figures = weighed.loss(
        weighed.model, batch(), StepInfo(step=0, steps_per_epoch=2, epochs=3, batch=4)
    )
    torch.testing.assert_close(
        figures["loss"], figures["reconstruction"] + 0.1 * figures["adversarial"]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, scorer: Path) -> list[Tensor]:
    return everything(run(tmp_path_factory.mktemp("whole"), tiny(f"mask.scorer={scorer}")))


class Killed(BaseException):
    """Stands for kill -9."""


def run_killed(out: Path, config: Config, where: str, count: int) -> None:
    """Kill a run at the `count`-th call of one of its learner's methods."""
    original, left = getattr(AdversarialPretraining, where), [count]

    def bomb(*args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialPretraining, where, bomb)
        with pytest.raises(Killed):
            run(out, config)


@pytest.mark.parametrize(("where", "count"), [("train_discriminator", 5), ("after_update", 7)])
def test_13_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, scorer: Path, whole: list[Tensor], where: str, count: int
) -> None:
    config = tiny(f"mask.scorer={scorer}")
    run_killed(tmp_path, config, where, count)
    assert 0 < read_state(tmp_path / "checkpoints" / "last.pt")["step"] < 9
    assert same(everything(run(tmp_path, config)), whole)


def test_13_the_half_precision_scaler_is_taken_up(tmp_path: Path) -> None:
    config = tiny("training.precision=fp16")
    made = run(tmp_path / "whole", config)
    run_killed(tmp_path / "killed", config, "after_update", 5)
    assert same(everything(run(tmp_path / "killed", config)), everything(made))
    one, other = (
        read_state(tmp_path / name / "checkpoints" / "last.pt")["scaler"]
        for name in ("whole", "killed")
    )
    assert one == other
    assert one["scale"] > 1


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
    made.train_discriminator(attention, inp, AT)
    for first in (0, 2):
        at = StepInfo(step=0, steps_per_epoch=3, epochs=3, batch=4, first=first)
        part_of = MaskInput(batch=2, grid=(8, 8), device=torch.device("cpu"), first=first, whole=4)
        parts.train_discriminator(attention[first : first + 2], part_of, at)
    for one, other in zip(
        made.discriminator.parameters(), parts.discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_14_the_critic_steps_once_for_each_effective_batch_on_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes each has half of the batch, from its own first image on."""
    monkeypatch.setattr("pretrain.objectives.adversarial.dist.is_initialized", lambda: True)
    monkeypatch.setattr("pretrain.objectives.adversarial.dist.get_world_size", lambda: 2)
    made = learner(tiny(), tmp_path)
    steps: list[StepInfo] = []
    monkeypatch.setattr(made, "step_discriminator", steps.append)
    attention = torch.rand(1, 2, 64, generator=rng())
    for first, count in ((0, 0), (1, 1), (2, 1), (3, 2)):
        at = StepInfo(step=0, steps_per_epoch=2, epochs=3, batch=4, first=first)
        own = MaskInput(batch=1, grid=(8, 8), device=torch.device("cpu"), first=first, whole=4)
        made.train_discriminator(attention, own, at)
        assert len(steps) == count


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
    machine = Machine(max_batch=4, workers=0, device="cpu")
    context = RunContext(out=out, digest="d", config=to_mapping(config), machine=machine)
    fit(Pretraining(config, torch.device("cpu"), out), Pictures(), config.loop(), context)
    return out


def test_wrong_settings_say_so() -> None:
    with pytest.raises(ValueError, match="boost is -1"):
        Strategy(boost=-1)


def test_the_digest_ignores_where_the_networks_lie(tmp_path: Path, scorer: Path) -> None:
    here, there = (tiny(f"mask.scorer={p}").digest() for p in (scorer, tmp_path / "moved.pth"))
    assert here == there
    assert here != tiny().digest()
    assert read_config("automae_vit_base_16", []).mask == {"name": "adversarial", "ratio": 0.75}


@pytest.mark.parametrize("stream", [1, 2, 3, 5])
def test_the_critic_shares_no_random_numbers_with_the_masks(stream: int, tmp_path: Path) -> None:
    """Not even where masks come from another stream than usual, and no stream moves the critic's."""
    run, seeds = learner(tiny(f"start.mask_stream={stream}"), tmp_path), []
    run.dice = lambda at, number: _noted(Pretraining.dice(run, at, number), seeds)  # type: ignore[method-assign]
    run.loss(run.model, batch(), StepInfo(step=3, steps_per_epoch=3, epochs=3, batch=4))
    critic, own = seeds
    assert critic != own
    usual: list[int] = []
    other = learner(tiny(), tmp_path)
    other.dice = lambda at, number: _noted(Pretraining.dice(other, at, number), usual)  # type: ignore[method-assign]
    other.loss(other.model, batch(), StepInfo(step=3, steps_per_epoch=3, epochs=3, batch=4))
    assert usual[0] == critic
    assert (usual[1] == own) == (stream == 1)


def _noted(generator: torch.Generator, seeds: list[int]) -> torch.Generator:
    seeds.append(generator.initial_seed())
    return generator
