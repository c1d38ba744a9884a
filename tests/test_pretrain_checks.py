"""The acceptance list for Hard Patches Mining, in its order.

Elsewhere: 2 and 3 (the released files, MAE's outputs) in test_pretrain_golden.py; 11's clipping and
rate within an accumulation window in test_loop.py; 15 (resumption) in test_pretrain_run.py; 16
(fine-tuning's missing keys, layer decay) in test_finetune.py.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.checkpoints import write_weights
from mimbench.config import from_mapping
from mimbench.positions import sincos_table
from mimbench.runtime import Ranks
from mimbench.task import Machine, load_task
from mimbench.training.batches import Batch, StepSampler
from mimbench.training.learner import Moment, Place
from mimbench.training.loop import _Run
from mimbench.training.optim import Schedule, plan_batch
from mimbench.training.watch import LossWatch
from mimbench.weights import VitSpec, VitWeights, random_weights
from pretrain import masks
from pretrain.config import Config, read_config
from pretrain.features import FeatureNetwork
from pretrain.layouts import to_official
from pretrain.learner import Pretraining, parameter_groups
from pretrain.masks import MaskInput
from pretrain.masks.hard import Strategy as Hard
from pretrain.model import DecoderConfig, MaskedAutoencoder, from_patches, split, take, to_patches
from pretrain.objective import (
    absolute_loss,
    feature_loss,
    normalise_patches,
    pair_signs,
    pixel_loss,
    rank_correlation,
    relative_loss,
)
from pretrain.teacher import TeacherConfig
from tests.tiny_pretrain import NETWORK

TINY = [
    *NETWORK,
    "encoder.patch=8",
    "encoder.depth=2",
    "data.root=/nowhere",
    "training.batch=4",
]


def tiny(*overrides: str) -> Config:
    return read_config("hpm_vit_base_16", [*TINY, "training.precision=fp32", *overrides])


def learner(*overrides: str) -> Pretraining:
    torch.manual_seed(0)
    return Pretraining(tiny(*overrides), torch.device("cpu"), out=None)  # pyright: ignore[reportArgumentType]


def moment(epoch: int = 150, *, first: int = 0, batch: int = 4) -> Moment:
    return Moment(step=10 * epoch, steps_per_epoch=10, epochs=200, batch=batch, first=first)


def images(count: int = 4, seed: int = 0) -> Batch:
    data = torch.randint(
        0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Batch(torch.arange(count), data, ())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(batch: int, difficulty: Tensor | None = None, **more: Any) -> MaskInput:
    return MaskInput(
        batch=batch, grid=(14, 14), device=torch.device("cpu"), difficulty=difficulty, **more
    )


# 1 ------------------------------------------------------------------------------------------------


def test_1_position_table() -> None:
    table = sincos_table(32, (4, 4), class_row=True)[0]
    assert not table[0].any()
    grid = table[1:].reshape(4, 4, 32)
    assert torch.equal(grid[0, :, :16], grid[3, :, :16])
    assert torch.equal(grid[:, 0, 16:], grid[:, 3, 16:])
    assert not torch.equal(grid[0, 0, :16], grid[0, 1, :16])


def test_1_the_largest_model_has_the_released_entries() -> None:
    config = read_config("hpm_vit_base_16", ["encoder.size=huge", "encoder.patch=14"])
    with torch.device("meta"):
        spec = config.encoder.spec(config.data)
        model = MaskedAutoencoder(spec, config.decoder, outputs=None, predictor=True)
    official = to_official(model.state_dict(), pixels=588)
    assert len(official) == 110 + 100 + 12 * 32
    assert official["pos_embed"].shape == (1, 257, 1280)
    for head in ("decoder_pred.weight", "decoder_pred_losspred.weight"):
        assert official[head].shape == (588, 512)


@pytest.mark.parametrize(
    ("size", "total", "trained", "entries", "encoder"),
    [
        ("base", 137_521_920, 137_269_760, 354, 85_798_656),
        ("large", 355_155_968, 354_853_376, 498, 303_301_632),
    ],
)
def test_1_parameter_counts_of_the_released_models(
    size: str, total: int, trained: int, entries: int, encoder: int
) -> None:
    config = read_config("hpm_vit_base_16", [f"encoder.size={size}"])
    with torch.device("meta"):
        spec = config.encoder.spec(config.data)
        model = MaskedAutoencoder(spec, config.decoder, outputs=None, predictor=True)
    official = to_official(model.state_dict(), pixels=768)
    assert len(official) == entries
    assert sum(t.numel() for t in official.values()) == total
    tables = official["pos_embed"].numel() + official["decoder_pos_embed"].numel()
    assert total - tables == trained
    assert sum(t.numel() for t in model.encoder.state_dict().values()) == encoder


@pytest.mark.parametrize(
    "change",
    [
        ["encoder.size=tiny", "encoder.width=null", "encoder.heads=null"],
        ["data.image_size=40", "encoder.patch=10"],
        ["data.image_size=64", "encoder.patch=4"],
    ],
)
def test_1_any_size_of_encoder_image_and_patch(change: list[str]) -> None:
    run = learner(*change)
    side = run.config.data.image_size
    batch = Batch(torch.arange(4), torch.randint(0, 256, (4, 3, side, side)).byte(), ())
    figures = run.loss(run.student, batch, moment())
    figures["loss"].backward()
    assert torch.isfinite(figures["loss"])
    assert run.student.encoder.patch_embed.proj.weight.grad is not None


# 2, 3: golden -------------------------------------------------------------------------------------
# 4 ------------------------------------------------------------------------------------------------


def test_4_patches_have_their_channel_fastest_and_go_back() -> None:
    image = torch.arange(2 * 3 * 16 * 24.0).reshape(2, 3, 16, 24)
    patches = to_patches(image, 8)
    assert patches.shape == (2, 6, 192)
    # patch 4 is row 1, column 1; pixel (2, 5) of it, channel 1
    assert patches[1, 4, (2 * 8 + 5) * 3 + 1] == image[1, 1, 8 + 2, 8 + 5]
    assert torch.equal(from_patches(patches, 8, (2, 3)), image)


def test_4_normalised_targets() -> None:
    target = normalise_patches(torch.randn(3, 5, 768, generator=rng()) * 7 + 2)
    assert target.mean(-1).abs().max() < 1e-5
    assert (target.var(-1) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("target", ["pixels", "normalised"])
def test_4_visible_patches_never_touch_the_loss(target: str) -> None:
    run = learner(f"objective.target={target}")
    patches = torch.randn(2, 16, 192, generator=rng())
    mask = masks.build({"name": "random"})(
        MaskInput(batch=2, grid=(4, 4), device=torch.device("cpu")), rng()
    )
    visible, hidden = split(mask, 12)
    assert torch.equal(mask.nonzero()[:, 1].reshape(2, 12), hidden)
    prediction = torch.randn(2, 12, 192, generator=rng(1))
    images = torch.zeros(2, 3, 32, 32)
    before = run.patch_losses(prediction, patches, images, hidden, None)
    changed = patches.scatter(1, visible.unsqueeze(-1).expand(-1, -1, 192), 9.0)
    assert torch.equal(run.patch_losses(prediction, changed, images, hidden, None), before)
    changed = patches.scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 192), 9.0)
    assert not torch.equal(run.patch_losses(prediction, changed, images, hidden, None), before)


def test_4_hidden_pixels_never_reach_the_encoder() -> None:
    model = learner().student
    patches = torch.randn(2, 16, 192, generator=rng())
    visible, hidden = split(torch.arange(16).repeat(2, 1) % 4 > 0, 12)
    latent = model(patches, visible, hidden).latent
    changed = patches.scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 192), 9.0)
    assert torch.equal(model(changed, visible, hidden).latent, latent)


# 5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "first"), [(200, 2), (400, 5), (800, 10), (1600, 21)])
def test_5_counts_of_hard_patches(epochs: int, first: int) -> None:
    def hard(epoch: int, strategy: Hard = Hard()) -> int:  # noqa: B008
        return strategy.hard_count(look(1, epoch_progress=(epoch + 1) / epochs))

    assert [hard(epochs * q // 4 - 1) for q in (1, 2, 3, 4)] == [18, 36, 55, 73]
    assert next(e for e in range(epochs) if hard(e)) == first
    assert all(hard(e) == 147 * (e + 1) // (2 * epochs) for e in range(epochs))


@pytest.mark.parametrize(
    ("ratio", "visible", "final"),
    [
        (0.4, 117, 39),
        (0.5, 98, 49),
        (0.6, 78, 59),
        (0.7, 58, 69),
        (0.75, 49, 73),
        (0.8, 39, 78),
        (0.9, 19, 88),
    ],
)
def test_5_row_sums(ratio: float, visible: int, final: int) -> None:
    strategy = Hard(ratio=ratio)
    inp = look(5, torch.randn(5, 196, generator=rng()))
    assert strategy.hard_count(inp) == final
    assert strategy(inp, rng()).sum(1).tolist() == [196 - visible] * 5


def test_5_rounding_and_impossible_ratios() -> None:
    assert masks.hidden_count(100, 0.9) == 90
    assert masks.hidden_count(256, 0.75) == 192
    for ratio, patches in ((0.0, 196), (1.0, 196), (0.01, 16), (0.99, 16)):
        if ratio == 0.01:
            assert masks.hidden_count(patches, ratio) == 1
        else:
            with pytest.raises(Exception, match="mask ratio"):
                masks.hidden_count(patches, ratio)


def test_5_the_first_epoch_is_random() -> None:
    one, other = (
        look(6, torch.randn(6, 196, generator=rng(s)), epoch_progress=1 / 200) for s in (1, 2)
    )
    assert Hard().idle(one)
    assert torch.equal(Hard()(one, rng()), Hard()(other, rng()))
    assert torch.equal(Hard()(one, rng()), masks.build({"name": "random"})(look(6), rng()))


# 6 ------------------------------------------------------------------------------------------------


def test_6_hardest_always_hidden_the_others_evenly() -> None:
    q = torch.randn(196, generator=rng())
    inp = look(20_000, q.expand(20_000, -1))
    rate = Hard()(inp, rng()).float().mean(0)
    top = q.argsort(descending=True)
    assert (rate[top[:73]] == 1).all()
    others = rate[top[73:]]
    assert abs(others.mean() - 74 / 123) < 1e-6
    # 20,000 draws: the standard error of one rate is 0.0035
    assert (others - 74 / 123).abs().max() < 0.0175


@pytest.mark.parametrize(
    "change", [lambda q: q + 5, torch.exp, lambda q: q.double().pow(3).float()]
)
def test_6_only_the_order_of_difficulty_matters(change: Any) -> None:
    q = torch.randn(7, 196, generator=rng())
    assert torch.equal(Hard()(look(7, change(q)), rng()), Hard()(look(7, q), rng()))


def test_6_ties_half_precision_and_a_batch_of_one() -> None:
    for q in (torch.zeros(1, 196), torch.randn(1, 196, generator=rng()).half()):
        mask = Hard()(look(1, q), rng())
        assert mask.sum() == 147
        assert torch.equal(Hard()(look(1, q.clone()), rng()), mask)


def test_6_images_steps_and_processes_differ_but_division_does_not_matter() -> None:
    for name in masks.available():
        strategy = masks.build({"name": name})
        if strategy.needs:
            continue
        whole = strategy(look(8), rng())
        assert len({tuple(row.tolist()) for row in whole}) == 8
        assert not torch.equal(strategy(look(8), rng(1)), whole)
        parts = [strategy(look(4, first=first, whole=8), rng()) for first in (0, 4)]
        assert torch.equal(torch.cat(parts), whole)


def test_6_ablations() -> None:
    q = torch.randn(5, 196, generator=rng())
    top = q.argsort(dim=1, descending=True)
    hard_only = Hard(alpha_start=1, alpha_end=1)
    easy_only = Hard(alpha_start=1, alpha_end=1, order="easiest")
    for progress in (1 / 200, 1.0):
        inp = look(5, q, epoch_progress=progress)
        assert hard_only(inp, rng()).gather(1, top[:, :147]).all()
        assert easy_only(inp, rng()).gather(1, top[:, -147:]).all()
        assert Hard(alpha_start=0.5, alpha_end=0.5).hard_count(inp) == 73
    falling = Hard(alpha_start=0.5, alpha_end=0)
    counts = [falling.hard_count(look(1, epoch_progress=(e + 1) / 200)) for e in range(200)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (73, 0)
    per_step = Hard(per="step")
    assert per_step.hard_count(look(1, epoch_progress=1.0, step_progress=0.5)) == 36


# 7 ------------------------------------------------------------------------------------------------


def scored(b: int = 3, m: int = 12) -> tuple[Tensor, Tensor]:
    return torch.randn(b, m, generator=rng(1)), torch.rand(b, m, generator=rng(2))


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_7_relative_loss_invariances(epsilon: float) -> None:
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


def test_7_relative_loss_pairs_ties_and_gradient() -> None:
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
def test_7_without_any_pair_the_loss_is_zero(m: int) -> None:
    s = torch.randn(2, m, requires_grad=True)
    loss = relative_loss(s, pair_signs(torch.ones(2, m)))
    loss.backward()
    assert loss.item() == 0
    assert s.grad is not None
    assert not s.grad.any()


def test_7_badly_wrong_half_precision_pairs_keep_their_gradient() -> None:
    s = torch.tensor([[-40.0, 40.0]], dtype=torch.float16, requires_grad=True)
    loss = relative_loss(s, pair_signs(torch.tensor([[1.0, 0.0]])))
    loss.backward()
    assert loss.item() == 80
    assert s.grad is not None
    assert s.grad.abs().sum() == 2


def test_7_rank_correlation_is_kendalls_tau() -> None:
    _, losses = scored()
    signs = pair_signs(losses)
    assert rank_correlation(losses * 3, signs) == 1
    assert rank_correlation(-losses, signs) == -1
    assert rank_correlation(torch.zeros_like(losses), signs) == 0


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


def test_8_gradient_routing() -> None:
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


def test_8_total_is_the_plain_sum_and_predictor_off_is_mae() -> None:
    figures = learner().loss(learner().student, images(), moment())
    assert figures["loss"] == figures["reconstruction"] + figures["loss_prediction"]
    mae = learner("objective.predict_loss=none", "mask.name=random")
    assert mae.teacher is None
    assert mae.student.predictor is None
    figures = mae.loss(mae.student, images(), moment())
    assert figures.keys() == {"loss", "reconstruction"}


# 9 ------------------------------------------------------------------------------------------------


def test_9_teacher_follows_and_never_learns() -> None:
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
    run.loss(run.student, images(), moment())["loss"].backward()
    for group in groups:
        group["lr"] = 0.01
    run.optimizer.step()
    run.after_update(Moment(step=1501, steps_per_epoch=10, epochs=200, batch=4))
    for name, tensor in run.teacher.state_dict().items():
        new = run.student.state_dict()[name]
        torch.testing.assert_close(
            tensor, 0.9999 * before[name] + 0.0001 * new, rtol=1e-6, atol=1e-8
        )
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())


def test_9_teacher_sees_everything_whatever_is_hidden() -> None:
    run = learner()
    seen: list[tuple[int, ...]] = []
    assert run.teacher is not None
    run.teacher.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    for seed in (1, 2):
        run.config = tiny(f"training.seed={seed}")
        run.loss(run.student, images(), moment())
    assert seen == [(4, 16, 192)] * 2


def test_9_teacher_rests_while_nothing_is_hard_and_every_k_steps() -> None:
    calls: list[int] = []
    run = learner("teacher.every=3")
    assert run.teacher is not None
    run.teacher.register_forward_pre_hook(lambda module, args: calls.append(1))
    run.loss(run.student, images(), moment(epoch=0))
    assert not calls
    for step in range(1500, 1506):
        at = Moment(step=step, steps_per_epoch=10, epochs=200, batch=4)
        run.loss(run.student, images(), at)
    assert len(calls) == 2


def test_9_a_glance_at_a_smaller_image() -> None:
    run = learner("teacher.tokens=0.3")
    assert run.teacher is not None
    shapes: list[tuple[int, ...]] = []
    run.teacher.encoder.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    run.loss(run.student, images(), moment())
    assert shapes == [(4, 4, 192)]
    patches = to_patches(images().data.float() / 255, 8)
    assert run.teacher.glance(patches, 0.3).shape == (4, 16)
    full = run.teacher(patches, difficulty=True).difficulty
    torch.testing.assert_close(run.teacher.glance(patches, 1.0), full)


# 10, 11 -------------------------------------------------------------------------------------------


def test_10_decay() -> None:
    decay = TeacherConfig().decay
    wanted = {0: 0.999, 50: 0.99945, 99: 0.999891, 100: 0.9999, 700: 0.9999}
    assert {e: round(decay(e), 12) for e in wanted} == wanted


def test_11_learning_rate_and_decay_groups() -> None:
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


# 12 -----------------------------------------------------------------------------------------------


def test_12_accumulation_is_the_mean_of_the_totals() -> None:
    def gradient(run: Pretraining, parts: list[Batch]) -> list[Tensor]:
        run.student.zero_grad()
        for i, part in enumerate(parts):
            at = moment(first=i * len(part.indices))
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


def test_13_absolute_loss() -> None:
    s, losses = scored()
    targets = normalise_patches(losses)
    assert targets.mean(1).abs().max() < 1e-6
    assert (targets.var(1) - 1).abs().max() < 1e-4
    torch.testing.assert_close(absolute_loss(s, losses), (s - targets).square().mean())
    assert (absolute_loss(s + 1, losses) - absolute_loss(s, losses)).abs() > 0.1
    assert "loss_prediction" in learner("objective.predict_loss=absolute").loss(
        learner("objective.predict_loss=absolute").student, images(), moment()
    )


def test_14_feature_loss() -> None:
    a, b = torch.randn(3, 5, 8, generator=rng(1)), torch.randn(3, 5, 8, generator=rng(2))
    cosine = nn.functional.cosine_similarity(a, b, dim=-1)
    torch.testing.assert_close(feature_loss(a, b), 2 - 2 * cosine)
    torch.testing.assert_close(feature_loss(a * 9, b / 3), feature_loss(a, b))
    assert feature_loss(a, -a).max() <= 4.0001


def test_14_ema_features_come_from_the_whole_image_without_class_token() -> None:
    run = learner("objective.target=ema", "mask.name=random", "objective.predict_loss=none")
    assert run.teacher is not None
    assert run.student.reconstructor.pred.out_features == 24
    batch = images()
    normalised = (batch.data.float() / 255 - run.mean) / run.std
    patches = to_patches(normalised, 8)
    _, views = run.look(patches, normalised, moment())
    assert views is not None
    assert views.difficulty is None
    torch.testing.assert_close(views.features, run.teacher.encoder(patches)[:, 1:])
    hidden = torch.tensor([[1, 5]] * 4)
    prediction = torch.randn(4, 2, 24, generator=rng())
    found = run.patch_losses(prediction, patches, batch.data, hidden, views)
    torch.testing.assert_close(found, feature_loss(prediction, views.features[:, [1, 5]]))


@pytest.mark.parametrize("target", ["dino", "clip"])
def test_14_features_of_another_network(
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
    figures = run.loss(run.student, images(), moment())
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
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(state, path)
    return path


def test_14_clip_features_are_normalised_then_projected(clip_file: Path) -> None:
    network = FeatureNetwork(clip_file, (4, 4))
    pixels = torch.rand(2, 3, 64, 64, generator=rng())
    tokens = network.backbone(pixels).patches.flatten(1, 2)
    state = torch.load(clip_file, weights_only=True)
    torch.testing.assert_close(network(pixels), tokens @ state["visual.proj"])


# 17 -----------------------------------------------------------------------------------------------


def test_17_prediction_learns_and_its_masks_are_harder() -> None:
    """On images of which some patches are flat and some are noise."""
    run = learner("objective.target=pixels", "optimizer.base_lr=1")
    generator = rng(3)
    for group in run.optimizer.param_groups:
        group["lr"] = 3e-3
    figures: dict[str, Tensor] = {}

    def batch() -> Batch:
        flat = torch.randint(0, 256, (16, 3, 1, 1), generator=generator).expand(-1, -1, 32, 32)
        noise = torch.randint(0, 256, (16, 3, 32, 32), generator=generator)
        # the right half of every image is noise: hard, and always in the same place
        data = torch.where(torch.arange(32) >= 16, noise, flat).to(torch.uint8)
        return Batch(torch.arange(16), data, ())

    for step in range(60):
        at = Moment(step=step, steps_per_epoch=60, epochs=1, batch=16)
        figures = run.loss(run.student, batch(), at)
        run.optimizer.zero_grad()
        figures["loss"].backward()
        run.optimizer.step()
        run.after_update(Moment(step=step + 1, steps_per_epoch=60, epochs=1, batch=16))
    assert figures["loss_prediction"] < math.log(2)
    assert figures["rank_correlation"] > 0.2
    assert run.teacher is not None
    run.teacher.follow(0.0)
    last = Moment(step=1999, steps_per_epoch=10, epochs=200, batch=16)
    fixed = batch()
    guided = run.loss(run.student, fixed, last)["reconstruction"]
    run.strategy = masks.build({"name": "random"})
    assert guided > 1.02 * run.loss(run.student, fixed, last)["reconstruction"]


# no host read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        [],
        ["mask.name=random", "objective.predict_loss=none"],
        ["mask.per=step", "mask.order=easiest", "teacher.tokens=0.3"],
        ["objective.predict_loss=absolute", "objective.target=ema"],
        ["mask.name=attention", "objective.target=pixels"],
        ["mask.name=grid", "machine.recompute=true"],
        ["mask.name=block"],
    ],
    ids=lambda change: ",".join(change) or "usual",
)
def test_a_step_reads_nothing_back_from_the_device(
    change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device there is nothing to read, so any read within a step would fail."""
    generator, adamw, meta = torch.Generator, torch.optim.AdamW, torch.device("meta")
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, fused, **k: adamw(*a, **k))
    # neither has a form for the meta device; both do the same without the host
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, n, foreach: clip(p, n))
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: contextlib.nullcontext())
    config = tiny(*change, "training.batch=4", "training.log_every=4", "training.save_every=0")
    own = Pretraining(config, meta, out=tmp_path)
    samples = Pictures(40)
    place = Place(out=tmp_path, digest="d", machine=Machine(workers=0, max_batch=2))
    run = _Run(own, samples, config.loop(), place)
    # the device's own flag stops a fused optimizer, so that the host need not look
    monkeypatch.setattr(LossWatch, "always", property(lambda self: False))
    batches = iter(batch._replace(data=batch.data.to(meta)) for batch in map(images, [2] * 8))
    for _ in range(3):
        run._update(batches)
        run._look()
        run._keep()
    assert run.now.step == 3
    run._update(batches)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        run._look()


class Pictures:
    """A data set that is never asked for anything."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        raise AssertionError(index)

    def name(self, index: int) -> str:
        return str(index)


# 18 -----------------------------------------------------------------------------------------------


def test_18_every_image_of_a_full_epoch_is_seen_once() -> None:
    sampler = StepSampler(40, 8, plan_batch(8, world=1, at_most=4), Ranks(), 0, 0, 5)
    assert sorted(i for batch in sampler for _, i in batch) == list(range(40))


@pytest.mark.parametrize("task", ["knn.classify", "transfer.classification.linear"])
def test_18_every_validation_image_is_scored_with_its_own_label(
    task: str,
    painted_images: Callable[..., Path],
    small_spec: VitSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes of different sizes, and a batch that does not divide the images."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "cache"))
    data = painted_images(tmp_path / "data", train=6, val=5)
    (data / "val" / "class_1" / "val_1_000.png").unlink()
    settings: dict[str, Any] = {
        "data": str(data),
        "image_size": 32,
        "resize": None,
        "choices": ["avg"],
        "machine": {"device": "cpu", "workers": 0, "max_batch": 4},
    }
    more = {"k": [5], "main_k": 5}
    if task.endswith("linear"):
        more = {"batch": 8, "norm_batch": 8, "epochs": 1, "warmup": 0, "learning_rates": [1.0]}
    module = load_task(task)
    config = from_mapping(module.Config, {**settings, **more})
    metrics = module.run(random_weights(small_spec, 0), config, tmp_path / "out")
    found = np.load(tmp_path / "out" / "outcomes.npz")
    files = sorted((data / "val").rglob("*.png"))
    assert len(files) == 19
    assert sorted(found["images"].tolist()) == [str(f.relative_to(data / "val")) for f in files]
    for name, label in zip(found["images"], found["labels"], strict=True):
        assert name.startswith(f"class_{label}/")
    right = found["top5"][:, 0] == found["labels"]
    assert metrics["top1"] == pytest.approx(100 * right.mean())


def test_decoders_of_the_spec(tiny_spec: VitSpec) -> None:
    """The last block's shortcut for hidden tokens changes no output."""
    model = MaskedAutoencoder(
        tiny_spec, DecoderConfig(width=16, depth=2, heads=2), outputs=None, predictor=True
    )
    x = torch.randn(2, 17, 16, generator=rng())
    torch.testing.assert_close(model.reconstructor(x, 5), model.reconstructor(x, 17)[:, -5:])
