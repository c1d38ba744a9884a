"""Cheaper HPM: each switch changes what it says, costs what the counts say, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.mask_cost import pictures, take_step
from bench.mask_cost import step_info as late
from bench.pretrain_flops import decoder, encoder, executed
from mimbench.system.errors import UserError
from pretrain.checkpoints.handover import write_export, write_released
from pretrain.checkpoints.stored import read_model
from pretrain.config import read_config
from pretrain.models.autoencoder import to_patches
from pretrain.models.reconstruction import patch_weights, spread_choice
from pretrain.models.teacher import Trunk
from pretrain.objectives.learner import Pretraining
from pretrain.train import build_learner
from tests.support.tiny_pretrain import images, learner, rng, step_info

SHARED = ("objective.predictor=shared", "objective.exit=1", "decoder.depth=3")
A2Q = (*SHARED, "teacher.look=quarter")
SMALL = (
    "encoder.patch=16",
    "encoder.width=96",
    "encoder.depth=4",
    "encoder.heads=3",
    "decoder.width=64",
    "decoder.depth=4",
    "decoder.heads=2",
    "data.image_size=128",
    "data.root=/nowhere",
    "training.precision=fp32",
    "training.batch=1",
    "training.epochs=100",
    "machine.device=cpu",
)


def counted(*changes: str) -> tuple[int, Pretraining]:
    """Return the FLOPs of a step on one image of 64 patches, 48 of them hidden."""
    config = read_config("hpm_vit_base_16", [*SMALL, *changes])
    found = build_learner(config, torch.device("cpu"), Path("unused"))
    data, at = pictures(1, 3, 128, 128), late(1)
    take_step(found, data, at, "fp32", 5.0)
    return executed(lambda: take_step(found, data, at, "fp32", 5.0)), found


@pytest.fixture(scope="module")
def mae() -> int:
    return counted("mask.name=random", "objective.predict_loss=none")[0]


def test_a_shared_predictor_costs_a_head(mae: int) -> None:
    both = ("mask.name=random", "objective.predictor=shared")
    last, found = counted(*both)
    # forward, and the gradients of input and weights
    assert last - mae == 3 * 2 * 48 * 64
    early, _ = counted(*both, "objective.exit=2")
    assert early - mae == 3 * 2 * 48 * 64
    assert found.student.predictor is not None
    assert sum(p.numel() for p in found.student.predictor.parameters()) == 3 * 64 + 1


def test_a_quarter_teacher_costs_a_quarter_of_the_encoder(mae: int) -> None:
    whole, found = counted("objective.predictor=shared", "objective.exit=2")
    quarter, _ = counted("objective.predictor=shared", "objective.exit=2", "teacher.look=quarter")
    spec, shape = found.spec, found.config.decoder
    neck = 2 * spec.embed_dim * shape.width
    # as a decoder of two blocks: the head is one number for each patch
    judge = decoder(type(shape)(width=64, depth=2, heads=2), 64, 64, 1)
    head = 3 * 2 * 48 * 64
    assert whole - mae - head == sum(encoder(spec, 64)) + neck * 65 + judge
    assert quarter - mae - head == sum(encoder(spec, 16)) + neck * 17 + judge


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_partial_decoding_costs_fewer_tokens(share: float, mae: int) -> None:
    part, found = counted(
        "mask.name=random", "objective.predict_loss=none", f"objective.share={share}"
    )
    shape, kept = found.config.decoder, round(48 * share)
    saved = decoder(shape, 64, 48, 768) - decoder(shape, 16 + kept, kept, 768)
    # PyTorch counts a fifth product in attention's backward pass, which recomputes its weights
    assert 1 <= (mae - part) / (3 * saved) < 1.04


def test_hpm_as_it_was_is_untouched() -> None:
    """The defaults build the same tensors under the same names, and digest as before."""
    plain = learner()
    assert plain.student.leave is None
    assert plain.teacher is not None
    assert plain.teacher.reconstructor is None
    spelled = learner(
        "objective.predictor=own", "teacher.look=whole", "objective.share=1.0", "start.init=stream"
    )
    assert spelled.config.digest() == plain.config.digest()
    assert learner(*A2Q).config.digest() != learner("decoder.depth=3").config.digest()


def test_options_that_came_later_move_no_digest() -> None:
    """Runs from before the options go on: the first demo's digest is what it was before all of them."""
    before = "f8346dba4c0c7bced182277789385a1fb9237018cb43dc6734a0f74345764069"
    first = ["data.name=sample", "data.augment=none", "data.flip=0.5"]
    assert read_config("demo", first).digest() == before
    config = read_config("mae_vit_base_16", [])
    spelled = config.digest()
    again = read_config("mae_vit_base_16", ["objective.weights=none", "data.images=null"])
    assert again.digest() == spelled
    for change in (
        "data.images=10",
        "start.init=named",
        "start.mask_stream=2",
        "teacher.look=quarter",
    ):
        assert read_config("mae_vit_base_16", [change]).digest() != spelled


@pytest.mark.parametrize("after", [1, 2, 3])
def test_the_exit_reads_the_trunk_where_it_says(after: int) -> None:
    run = learner("objective.predictor=shared", f"objective.exit={after}", "decoder.depth=3")
    patches = to_patches(torch.randn(2, 3, 32, 32, generator=rng()), 8)
    visible, hidden = torch.arange(4).expand(2, -1), torch.arange(4, 16).expand(2, -1)
    seen: list[Any] = []
    run.student.reconstructor.blocks[after - 1].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out)
    )
    outputs = run.student(patches, visible, hidden)
    assert run.student.predictor is not None
    expected = run.student.predictor(seen[0][:, -12:]).squeeze(-1)
    torch.testing.assert_close(outputs.difficulty, expected)
    plain = run.student.reconstructor(run.student.neck(outputs.latent, visible, hidden), 12)
    torch.testing.assert_close(outputs.prediction, plain)


def test_the_teacher_follows_the_shared_trunk() -> None:
    run = learner(*A2Q)
    teacher = run.teacher
    assert teacher is not None
    names = {n.partition(".")[0] for n, _ in teacher.named_parameters()}
    assert names == {"encoder", "neck", "predictor", "reconstructor"}
    assert isinstance(teacher.reconstructor, Trunk)
    assert len(teacher.reconstructor.blocks) == 1
    with torch.no_grad():
        for parameter in run.student.parameters():
            parameter.add_(0.1)
    teacher.follow(0.0)
    theirs = dict(run.student.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in teacher.named_parameters())


def test_a_quarter_look_sees_a_quarter_and_answers_for_all() -> None:
    run = learner(*A2Q)
    assert run.teacher is not None
    patches = to_patches(torch.randn(3, 3, 32, 32, generator=rng()), 8)
    keys = torch.rand(3, 16, generator=rng(1))
    found = run.teacher.sample(patches, keys)
    assert found.shape == (3, 16)
    seen = keys.argsort(1)[:, :4]
    unseen = torch.ones(3, 16, dtype=torch.bool).scatter_(1, seen, value=False)
    changed = torch.where(unseen.unsqueeze(-1), 7.0, patches)
    assert torch.equal(run.teacher.sample(changed, keys), found)
    other = torch.where(unseen.unsqueeze(-1), patches, 7.0)
    assert not torch.equal(run.teacher.sample(other, keys), found)
    # what it says at hidden places is what the student's predictor says there
    hidden = unseen.nonzero()[:, 1].view(3, 12)
    outputs = run.student(patches, seen.sort(1).values, hidden)
    torch.testing.assert_close(found.gather(1, hidden), outputs.difficulty)


def test_looks_do_not_depend_on_the_division_and_move_no_mask() -> None:
    whole, parts = learner(*A2Q), learner(*A2Q)
    one: list[torch.Tensor] = []
    two: list[torch.Tensor] = []
    whole.student.register_forward_pre_hook(lambda _, inputs: one.append(inputs[2]))
    parts.student.register_forward_pre_hook(lambda _, inputs: two.append(inputs[2]))
    batch = images(4)
    whole.loss(whole.student, batch, step_info())
    for first in (0, 2):
        part = batch._replace(data=batch.data[first : first + 2])
        parts.loss(parts.student, part, step_info(first=first))
    assert torch.equal(one[0], torch.cat(two))


def test_random_masks_stay_the_same_whatever_else_is_switched() -> None:
    seen: list[torch.Tensor] = []
    for changes in ((), A2Q, ("objective.weights=difficulty", "teacher.look=quarter")):
        run = learner("mask.name=random", *changes)
        run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
        run.loss(run.student, images(), step_info())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    other = learner("mask.name=random", "start.mask_stream=5")
    other.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    other.loss(other.student, images(), step_info())
    assert not torch.equal(seen[0], seen[3])


def test_partial_decoding_answers_for_some_of_the_hidden() -> None:
    run = learner(*A2Q, "objective.share=0.34")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1:]))
    figures = run.loss(run.student, images(), step_info())
    visible, decoded = seen[0]
    assert decoded.shape == (4, 4)
    assert (decoded.diff(dim=1) > 0).all()
    assert not (decoded.unsqueeze(2) == visible.unsqueeze(1)).any()
    assert figures["loss"].isfinite()


def test_the_choice_is_even_over_the_order_and_every_place_as_likely() -> None:
    keys = torch.arange(12.0).flip(0).expand(6000, -1)
    offset = torch.rand(6000, 1, generator=rng())
    chosen = spread_choice(keys, offset, 5)
    assert (chosen.diff(dim=1) > 0).all()
    often = torch.zeros(12).scatter_add_(0, chosen.flatten(), torch.ones(30000)) / 6000
    torch.testing.assert_close(often, torch.full((12,), 5 / 12), atol=0.03, rtol=0)
    # of the easy half and the hard half at least two each
    assert ((chosen < 6).sum(1) >= 2).all()
    assert ((chosen >= 6).sum(1) >= 2).all()
    assert torch.equal(spread_choice(keys[:3], offset[:3], 12)[0], torch.arange(12))


def test_weights_have_mean_one_and_follow_their_values() -> None:
    values = torch.rand(5, 12, generator=rng())
    weights = patch_weights(values, 0.5)
    torch.testing.assert_close(weights.mean(1), torch.ones(5))
    assert torch.equal(weights.argsort(1), values.argsort(1))
    torch.testing.assert_close(patch_weights(values, 1e6), torch.ones(5, 12))
    scaled = (values - values.amin(1, keepdim=True)) / (values.amax(1) - values.amin(1)).view(-1, 1)
    ratio = weights[:, 1] / weights[:, 0]
    torch.testing.assert_close(ratio, ((scaled[:, 1] - scaled[:, 0]) / 0.5).exp())


def test_a_weight_scales_a_patchs_gradient() -> None:
    run = learner("mask.name=random", "objective.weights=attention", "objective.predict_loss=none")
    losses = torch.rand(2, 3, requires_grad=True)
    weights = torch.tensor([[2.0, 0.5, 0.5], [1.0, 1.0, 1.0]])
    outputs = run.student(
        to_patches(torch.zeros(2, 3, 32, 32), 8),
        torch.arange(4).expand(2, -1),
        torch.arange(4, 7).expand(2, -1),
    )
    figures = run.figures(outputs, losses, weights)
    figures["loss"].backward()
    torch.testing.assert_close(losses.grad, weights / 6)
    torch.testing.assert_close(figures["reconstruction"], losses.mean().detach())
    whole = run.loss(run.student, images(), step_info())
    assert whole["loss"] != whole["reconstruction"]


def test_a_shared_model_is_exported_and_read_back(tmp_path: Path) -> None:
    run = learner(*A2Q)
    write_export(tmp_path, run.config, run.student, run.teacher, step_info())
    stored = read_model(tmp_path)
    model, teacher = stored.build()
    assert stored.leave == 1
    assert teacher is not None
    assert teacher.reconstructor is not None
    for name, tensor in run.student.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    write_released(tmp_path / "mae.pth", stored, "mae")
    with pytest.raises(UserError, match="has no place"):
        write_released(tmp_path / "hpm.pth", stored, "hpm")


CROSS = ("decoder.kind=cross", "decoder.depth=2")


def test_a_cross_decoder_learns_and_its_queries_are_free() -> None:
    run = learner("mask.name=random", "objective.predict_loss=none", *CROSS)
    patches = to_patches(torch.randn(2, 3, 32, 32, generator=rng()), 8)
    visible, hidden = torch.arange(4).expand(2, -1), torch.arange(4, 16).expand(2, -1)
    whole = run.student(patches, visible, hidden).prediction
    part = run.student(patches, visible, hidden[:, 3:6]).prediction
    torch.testing.assert_close(part, whole[:, 3:6])
    run.loss(run.student, images(), step_info())["loss"].backward()
    trained = {n for n, p in run.student.named_parameters() if p.requires_grad}
    assert {n for n, p in run.student.named_parameters() if p.grad is not None} == trained
    assert "encoder.norm.weight" not in trained
    chosen = learner("mask.name=random", *CROSS, "decoder.features=[0,2]")
    assert chosen.student.state_dict()["reconstructor.mix"].shape == (2, 2)


@pytest.mark.parametrize("leave", [(), ("objective.predictor=shared", "objective.exit=1")])
def test_hpm_with_cross_decoders(leave: tuple[str, ...], tmp_path: Path) -> None:
    run = learner(*CROSS, *leave, "teacher.look=quarter", "objective.share=0.5")
    figures = run.loss(run.student, images(), step_info())
    figures["loss"].backward()
    assert figures["loss_prediction"].isfinite()
    assert run.teacher is not None
    patches = to_patches(torch.randn(3, 3, 32, 32, generator=rng()), 8)
    keys = torch.rand(3, 16, generator=rng(1))
    found = run.teacher.sample(patches, keys)
    visible = keys.argsort(1)[:, :4].sort(1).values
    places = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(found, run.student(patches, visible, places).difficulty)
    whole = run.teacher(patches, difficulty=True, attention=True)
    assert whole.difficulty is not None
    assert whole.attention is not None
    write_export(tmp_path, run.config, run.student, run.teacher, step_info())
    stored = read_model(tmp_path)
    model, teacher = stored.build()
    assert teacher is not None
    torch.testing.assert_close(teacher.sample(patches, keys), found)
    assert model.state_dict().keys() == run.student.state_dict().keys()
    with pytest.raises(UserError, match="cross decoder"):
        write_released(tmp_path / "mae.pth", stored, "mae")


def test_a_cross_decoder_costs_no_more_than_its_queries() -> None:
    mae, _ = counted("mask.name=random", "objective.predict_loss=none")
    plain = ("mask.name=random", "objective.predict_loss=none", "decoder.kind=cross")
    whole, third = counted(*plain)[0], counted(*plain, "objective.share=0.3333")[0]
    assert third < whole
    assert third < 0.8 * mae


def test_named_starts_reach_the_mixtures() -> None:
    one, two = (
        learner("start.init=named", *CROSS, f"mask.name={m}").student.state_dict()
        for m in ("random", "hard")
    )
    assert all(torch.equal(one[n], two[n]) for n in one)
    other = learner("start.init=named", *CROSS, "training.seed=1").student.state_dict()
    assert not torch.equal(one["reconstructor.mix"], other["reconstructor.mix"])


def test_masks_are_recorded_and_go_on_with_the_state(tmp_path: Path) -> None:
    whole, first, second = (learner() for _ in range(3))
    at = [step_info(epoch=150), replace(step_info(epoch=150), step=1501)]
    whole.begin_epoch(at[0])
    for moment in at:
        whole.loss(whole.student, images(), moment)
        whole.after_update(replace(moment, step=moment.step + 1))
    first.begin_epoch(at[0])
    first.loss(first.student, images(), at[0])
    first.after_update(at[1])
    second.restore(first.state())
    # a run that goes on in the middle of an epoch keeps what it had
    second.begin_epoch(at[1])
    second.loss(second.student, images(), at[1])
    second.after_update(replace(at[1], step=1502))
    found = whole.masks.summary()
    assert second.masks.summary() == found
    assert found["images"] == 8
    assert found["ratio"] == pytest.approx(0.75)
    assert 0.75 < found["hardest_quarter_hidden"] <= 1
    assert torch.tensor(found["where"]).shape == (4, 4)
    whole.out = tmp_path
    whole.saved(tmp_path / "checkpoints" / "epoch-0150.pt", at[1])
    kept = json.loads((tmp_path / "epoch-0150" / "masks.json").read_text())
    assert kept == {"step": 1501, **found}
    whole.begin_epoch(step_info(epoch=151))
    assert whole.masks.summary() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("decoder.features=[0]", "decoder.kind: cross"),
        ("objective.exit=2", "set predictor: shared"),
        ("objective.share=0", "share is 0"),
        ("objective.weights_temperature=0", "weights_temperature is 0"),
        ("teacher.look=half", "look"),
    ],
)
def test_switches_that_say_nothing_are_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learner(change)


def test_switches_that_contradict_are_refused() -> None:
    with pytest.raises(UserError, match="two ways to save"):
        learner("teacher.look=quarter", "teacher.tokens=0.5")
    with pytest.raises(UserError, match="decoder has 1 blocks"):
        learner("objective.predictor=shared", "objective.exit=2")
    with pytest.raises(UserError, match=r"objective\.share=1"):
        learner("mask.name=adversarial", "objective.share=0.5")
    with pytest.raises(UserError, match=r"set teacher\.tokens=1"):
        learner(*CROSS, "teacher.tokens=0.5")
    with pytest.raises(UserError, match=r"names \[7\], but the encoder has its input"):
        learner(*CROSS, "decoder.features=[0,7]")
    with pytest.raises(UserError, match="need objective.predict_loss"):
        learner("mask.name=random", "objective.weights=difficulty", "objective.predict_loss=none")
