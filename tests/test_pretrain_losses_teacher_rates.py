"""The acceptance list for Hard Patches Mining, 7 to 11: losses, gradients, teacher and rates.

Elsewhere: 11's clipping and rate within an accumulation window in test_loop.py.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from mimbench.training.learner import StepInfo
from mimbench.training.optim import Schedule
from pretrain.config import read_config
from pretrain.models.autoencoder import from_patches, split, take, to_patches
from pretrain.models.decoders import Decoder
from pretrain.models.options import TeacherConfig
from pretrain.models.reconstruction import (
    pair_signs,
    pixel_loss,
    rank_correlation,
    relative_loss,
)
from pretrain.objectives.learner import Pretraining, parameter_groups
from pretrain.objectives.looking import Given
from tests.support.tiny_pretrain import images, learner, rng, scored, step_info, tiny

# 7 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_relative_loss_invariances(epsilon: float) -> None:
    def value(s: Tensor, losses: Tensor) -> Tensor:
        return relative_loss(s, pair_signs(losses), epsilon=epsilon)

    s, losses = scored()
    base = value(s, losses)
    torch.testing.assert_close(value(s + torch.tensor([[3.0], [-1], [9]]), losses), base)
    assert torch.equal(value(s, losses.exp() * 4), base)
    order = torch.randperm(12, generator=rng())
    torch.testing.assert_close(value(s[:, order], losses[:, order]), base)
    equal = value(torch.zeros_like(s), losses)
    assert abs(equal.item() - math.log(2)) < 3e-6
    assert value(losses * 1000, losses) < 0.02
    assert value(-losses * 1000, losses) > 10


def test_relative_loss_pairs_ties_and_gradient() -> None:
    s, losses = scored()
    losses[:, 3] = losses[:, 4]
    s.requires_grad_()
    found = relative_loss(s, pair_signs(losses))
    wanted = []
    for b in range(3):
        for i in range(12):
            for j in range(i + 1, 12):
                if losses[b, i] != losses[b, j]:
                    label = (losses[b, i] > losses[b, j]).float()
                    logit = s[b, i] - s[b, j]
                    wanted.append(nn.functional.binary_cross_entropy_with_logits(logit, label))
    assert len(wanted) == 3 * (66 - 1)
    torch.testing.assert_close(found, torch.stack(wanted).mean(), rtol=1e-5, atol=0)
    found.backward()
    assert s.grad is not None
    assert s.grad.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("m", [1, 6])
def test_without_any_pair_the_loss_is_zero(m: int) -> None:
    s = torch.randn(2, m, requires_grad=True)
    loss = relative_loss(s, pair_signs(torch.ones(2, m)))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert not s.grad.any()


def test_badly_wrong_half_precision_pairs_keep_their_gradient() -> None:
    s = torch.tensor([[-40.0, 40.0]], dtype=torch.float16, requires_grad=True)
    loss = relative_loss(s, pair_signs(torch.tensor([[1.0, 0.0]])))
    loss.backward()
    assert loss.item() == 80
    assert s.grad is not None
    assert s.grad.abs().sum() == 2


def test_rank_correlation_is_kendalls_tau() -> None:
    _, losses = scored()
    signs = pair_signs(losses)
    assert rank_correlation(losses * 3, signs) == 1
    assert rank_correlation(-losses, signs) == -1
    assert rank_correlation(torch.zeros_like(losses), signs) == 0


def test_half_precision_neither_rounds_the_decoders_stream_nor_the_difficulty() -> None:
    """Blocks hand on float32, as the encoder's do; of 196 numbers in bfloat16 a dozen would tie."""
    model, seen = learner().student, []
    for decoder in (model.reconstructor, model.predictor):
        assert isinstance(decoder, Decoder)
        for block in decoder.blocks:
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    patches = torch.randn(4, 16, 192, generator=rng())
    order = torch.rand(4, 16, generator=rng(1)).argsort(1)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(patches, order[:, :4], order[:, 4:])
    assert seen == [torch.float32] * 2
    assert out.difficulty is not None
    assert out.difficulty.dtype == torch.float32
    assert (out.difficulty != out.difficulty.bfloat16()).any()
    assert out.prediction.dtype == torch.bfloat16


# 8 ------------------------------------------------------------------------------------------------


def groups_with_gradient(run: Pretraining, loss: Tensor) -> set[str]:
    run.student.zero_grad()
    loss.backward()
    found = set()
    for name, p in run.student.named_parameters():
        if p.grad is not None and p.grad.any():
            top, *rest = name.split(".")
            found.add(top if top not in {"neck", "encoder"} else f"{top}.{rest[0]}")
    return found


def test_gradient_routing() -> None:
    run = learner()
    encoder = {f"encoder.{part}" for part in ("blocks", "norm", "cls_token", "patch_embed")}
    shared = encoder | {"neck.embed", "neck.mask_token"}

    def parts() -> tuple[Tensor, Tensor]:
        patches = to_patches(images().data.float() / 255, 8)
        visible, hidden = split(torch.arange(16).repeat(4, 1) % 4 > 0, 12)
        outputs = run.student(patches, visible, hidden)
        losses = pixel_loss(outputs.prediction, take(patches, hidden))
        assert outputs.difficulty is not None
        return losses, relative_loss(outputs.difficulty, pair_signs(losses))

    _, predicted = parts()
    assert groups_with_gradient(run, predicted) == shared | {"predictor"}
    losses, _ = parts()
    assert groups_with_gradient(run, losses.mean()) == shared | {"reconstructor"}


def test_total_is_the_plain_sum_and_predictor_off_is_mae() -> None:
    figures = learner().loss(learner().student, images(), step_info())
    assert figures["loss"] == figures["reconstruction"] + figures["loss_prediction"]
    mae = learner("objective.predict_loss=none", "mask.name=random")
    assert mae.teacher is None
    assert mae.student.predictor is None
    figures = mae.loss(mae.student, images(), step_info())
    assert figures.keys() == {"loss", "reconstruction"}


# 9 ------------------------------------------------------------------------------------------------


def test_teacher_follows_and_never_learns() -> None:
    run = learner()
    assert run.teacher is not None
    twin = run.student.state_dict()
    for name, tensor in run.teacher.state_dict().items():
        assert torch.equal(tensor, twin[name]), name
    assert not any("reconstructor" in name for name in run.teacher.state_dict())
    ours = {id(p) for p in run.teacher.parameters()}
    groups = run.optimizer.param_groups
    assert ours.isdisjoint(id(p) for g in groups for p in g["params"])
    before = {k: v.clone() for k, v in run.teacher.state_dict().items()}
    run.loss(run.student, images(), step_info())["loss"].backward()
    for group in groups:
        group["lr"] = 0.01
    run.optimizer.step()
    run.after_update(StepInfo(step=1501, steps_per_epoch=10, epochs=200, batch=4))
    for name, tensor in run.teacher.state_dict().items():
        new = run.student.state_dict()[name]
        torch.testing.assert_close(
            tensor, 0.9999 * before[name] + 0.0001 * new, rtol=1e-6, atol=1e-8
        )
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())


def test_teacher_sees_everything_whatever_is_hidden() -> None:
    run = learner()
    seen: list[tuple[int, ...]] = []
    assert run.teacher is not None
    run.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    for seed in (1, 2):
        run.config = tiny(f"training.seed={seed}")
        run.loss(run.student, images(), step_info())
    assert seen == [(4, 16, 192)] * 2


def test_teacher_rests_while_nothing_is_hard_and_every_k_steps() -> None:
    calls: list[int] = []
    run = learner("teacher.every=3")
    assert run.teacher is not None
    run.teacher.register_forward_pre_hook(lambda module, args: calls.append(1))
    run.loss(run.student, images(), step_info(epoch=0))
    assert not calls
    for step in range(1500, 1506):
        at = StepInfo(step=step, steps_per_epoch=10, epochs=200, batch=4)
        run.loss(run.student, images(), at)
    assert len(calls) == 2


def test_a_glance_at_a_smaller_image() -> None:
    run = learner("teacher.tokens=0.3")
    assert run.teacher is not None
    shapes: list[tuple[int, ...]] = []
    run.teacher.encoder.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    run.loss(run.student, images(), step_info())
    assert shapes == [(4, 4, 192)]
    patches = to_patches(images().data.float() / 255, 8)
    assert run.teacher.glance(patches, 0.3).shape == (4, 16)
    full = run.teacher(patches, difficulty=True).difficulty
    torch.testing.assert_close(run.teacher.glance(patches, 1.0), full)
    # half the side: torchvision's antialiased resize, a network's look at it, and back
    image = from_patches(patches, 8, (4, 4))
    small = TF.resize(image, [16, 16], antialias=True)
    seen = run.teacher(to_patches(small, 8), difficulty=True, grid=(2, 2)).difficulty
    assert seen is not None
    wide = TF.resize(seen.reshape(-1, 1, 2, 2), [4, 4], antialias=False)
    torch.testing.assert_close(run.teacher.glance(patches, 0.25), wide.flatten(1))


@pytest.mark.parametrize("kind", ["cross", "self"])
def test_what_a_teacher_sees_is_told_from_what_it_predicts(kind: str) -> None:
    run = learner(f"decoder.kind={kind}")
    teacher = run.teacher
    assert teacher is not None
    patches = to_patches(images().data.float() / 255, 8)
    views = teacher(patches, difficulty=True, attention=True)
    tokens = teacher.encoder.outputs(patches)[-1] if kind == "cross" else teacher.encoder(patches)
    torch.testing.assert_close(views.features, tokens[:, teacher.spec.class_tokens :])
    assert views.difficulty is not None
    assert views.difficulty.shape == (4, 16)
    assert torch.equal(views.attention, teacher.attend(patches))
    alone = teacher(patches, difficulty=False)
    assert torch.equal(alone.features, views.features)
    assert (alone.difficulty, alone.attention) == (None, None)
    # with everything seen, a sample's predictions are those of the whole image
    keys = torch.rand(4, 16, generator=rng())
    everything = teacher.sample(patches, keys, share=1.0)
    if kind == "cross":
        torch.testing.assert_close(everything, views.difficulty)
    assert not torch.equal(teacher.sample(patches, keys, share=0.25), everything)


@pytest.mark.parametrize(
    ("mask", "field"),
    [
        ("hard", "difficulty"),
        ("attention", "attention"),
        ("contrast", "images"),
        ("salience", "salience"),
        ("harder", "trial"),
        ("random", None),
    ],
)
def test_a_mask_is_given_what_it_needs_and_nothing_else(mask: str, field: str | None) -> None:
    run = learner(f"mask.name={mask}", "objective.predict_loss=relative")
    normalised, patches = run.prepare(images().data)
    inp, _ = run.look(patches, normalised, Given.of(images()), step_info())
    known = ("difficulty", "attention", "images", "salience", "trial", "keep", "log_probability")
    assert [name for name in known if getattr(inp, name) is not None] == ([field] if field else [])
    assert (inp.batch, inp.grid, inp.first, inp.whole) == (4, (4, 4), 0, 4)
    assert inp.epoch_progress == pytest.approx(151 / 200)
    assert inp.step_progress == pytest.approx(1501 / 2000)
    if field == "salience":
        assert inp.salience is not None
        torch.testing.assert_close(inp.salience, run.outgoing(patches))
    if field == "images":
        assert inp.images is normalised


# 10, 11 -------------------------------------------------------------------------------------------


def test_decay() -> None:
    decay = TeacherConfig().decay
    wanted = {0: 0.999, 50: 0.99945, 99: 0.999891, 100: 0.9999, 700: 0.9999}
    assert {e: round(decay(e), 12) for e in wanted} == wanted


def test_learning_rate_and_decay_groups() -> None:
    config = read_config("hpm_vit_base_16", ["encoder.size=tiny", "decoder.depth=1"])
    o = config.optimizer
    schedule = Schedule(peak=o.base_lr * 2048 / 256, epochs=200, warmup=o.warmup_epochs)
    assert (schedule(0), schedule(40)) == (0, pytest.approx(1.2e-3))
    assert schedule(200) < 1e-12
    run = learner()
    decayed, free = parameter_groups(run.student, 0.05)
    names = {id(p): n for n, p in run.student.named_parameters()}
    assert {"encoder.cls_token", "neck.mask_token"} <= {names[id(p)] for p in decayed["params"]}
    assert all(p.ndim == 1 for p in free["params"])
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0)
    assert config.loop().clip_grad == 5.0
    assert all(group["fused"] for group in run.optimizer.param_groups)
