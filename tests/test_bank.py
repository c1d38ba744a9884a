"""The bank of predicted difficulties: where crops lie in it, what is remembered, what it costs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mimbench.system.errors import UserError
from mimbench.training.batches import Batch
from pretrain.compare.quality import bank_quality
from pretrain.models.options import TeacherConfig
from pretrain.objectives.bank import DifficultyBank, cells
from pretrain.objectives.learner import Pretraining
from pretrain.objectives.looking import Given
from tests.support.tiny_pretrain import images, learner, rng, step_info, tiny
from tests.test_hpm_cheap import counted

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]])
HERE = torch.device("cpu")
NONE = (
    "objective.predictor=shared",
    "objective.exit=1",
    "teacher.bank=true",
    "teacher.every=0",
)


def test_a_whole_image_is_read_place_by_place() -> None:
    assert torch.equal(cells((3, 4), WHOLE)[0], torch.arange(12))
    mirrored = WHOLE.clone()
    mirrored[0, 4] = 1
    assert torch.equal(cells((3, 4), mirrored)[0].view(3, 4), torch.arange(12).view(3, 4).flip(1))


def test_a_crop_is_read_through_its_box() -> None:
    corner = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0]])
    found = cells((4, 4), corner)[0].view(4, 4)
    assert found[0].tolist() == [10, 10, 11, 11]
    assert found[:, 0].tolist() == [10, 10, 14, 14]
    beyond = torch.tensor([[-0.2, -0.2, 1.4, 1.4, 0.0]])
    assert set(cells((4, 4), beyond)[0].tolist()) <= set(range(16))


def test_ranks_come_back_from_where_they_were_written(tmp_path: Path) -> None:
    bank = DifficultyBank(tmp_path, 5, (4, 4), 0.5)
    assert bank.maps.nbytes == 5 * 16
    assert bank.maps.dtype == "uint8"
    hidden = torch.tensor([[0, 3, 5, 8]])
    bank.note(torch.tensor([2]), WHOLE, hidden, torch.tensor([[9.0, -1.0, 3.0, 100.0]]))
    # nobody sees a step's predictions before it is over
    assert bank.read(torch.tensor([2]), WHOLE).isnan().all()
    bank.settle(HERE)
    found = bank.read(torch.tensor([2, 1]), WHOLE.expand(2, -1))
    assert found[1].isnan().all()
    torch.testing.assert_close(
        found[0, hidden[0]], torch.tensor([2 / 3, 0, 1 / 3, 1]), atol=0.003, rtol=0
    )
    assert found[0].isnan().sum() == 12
    mirrored = WHOLE.clone()
    mirrored[0, 4] = 1
    seen = bank.read(torch.tensor([2]), mirrored)[0].view(4, 4).flip(1).flatten()
    assert torch.equal(seen.nan_to_num(-1), found[0].nan_to_num(-1))


def test_a_new_rank_moves_a_known_one_by_the_rate(tmp_path: Path) -> None:
    bank, who = DifficultyBank(tmp_path, 2, (2, 2), 0.25), torch.tensor([1])
    for high in (0, 1):
        bank.note(who, WHOLE, torch.tensor([[0, 1]]), torch.tensor([[1.0 - high, 0.0 + high]]))
        bank.settle(HERE)
    found = bank.read(who, WHOLE)[0]
    torch.testing.assert_close(found[:2], torch.tensor([0.75, 0.25]), atol=0.003, rtol=0)


def test_several_masks_and_several_patches_of_a_cell_are_averaged(tmp_path: Path) -> None:
    bank, who = DifficultyBank(tmp_path, 1, (2, 2), 0.5), torch.tensor([0])
    quarter = torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.0]])
    # all four patches lie in the first cell; ranks of two masks: 0 and 1, 0 and 1
    hidden = torch.tensor([[0, 1], [2, 3]])
    bank.note(who, quarter, hidden, torch.tensor([[1.0, 2.0], [5.0, 4.0]]))
    bank.settle(HERE)
    found = bank.read(who, WHOLE)[0]
    assert found[0].item() == pytest.approx(0.5, abs=0.003)
    assert found[1:].isnan().all()


def test_a_bank_of_other_images_is_refused(tmp_path: Path) -> None:
    state = DifficultyBank(tmp_path, 5, (4, 4), 0.5).state()
    with pytest.raises(UserError, match="5 images of 16 places, this run has 4"):
        DifficultyBank(tmp_path, 4, (4, 4), 0.5).restore(state)


def with_places(count: int = 4) -> Batch:
    plain = images(count)
    place = torch.tensor([[0.1, 0.2, 0.7, 0.6, float(i % 2)] for i in range(count)])
    return Batch(plain.indices, {"image": plain.data, "place": place}, ())


def test_masks_follow_what_was_predicted_the_last_time(tmp_path: Path) -> None:
    run = learner(*NONE, "mask.alpha_start=1.0", "mask.alpha_end=1.0", "mask.ratio=0.5")
    assert run.teacher is None
    run.out = tmp_path
    run.open_bank(4)
    assert run.bank is not None
    seen: list[torch.Tensor] = []
    run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    batch = with_places()
    run.loss(run.student, batch, step_info())
    assert not np.asarray(run.bank.maps).any(), "an unfinished step is not remembered"
    run.after_update(step_info())
    assert np.asarray(run.bank.maps).any(axis=1).all()
    # what each cell is believed to be, by hand
    run.bank.maps[:] = torch.randint(1, 256, (4, 16), generator=rng(4)).numpy()
    run.loss(run.student, batch, step_info())
    ranks = run.bank.read(batch.indices, batch.data["place"])
    for row, hidden in zip(ranks, seen[-1], strict=True):
        assert row[hidden].min() >= row[~torch.isin(torch.arange(16), hidden)].max()
    assert run.masks.pending.any()


def test_unknown_images_are_masked_at_random(tmp_path: Path) -> None:
    run = learner(*NONE, "mask.alpha_start=1.0", "mask.alpha_end=1.0")
    run.out = tmp_path
    run.open_bank(4)
    one = run.look(*parts(run), step_info(3))[0].difficulty
    two = run.look(*parts(run), step_info(4))[0].difficulty
    assert one is not None
    assert two is not None
    assert one.isfinite().all()
    assert not torch.equal(one, two)


def parts(run: Pretraining) -> tuple[torch.Tensor, torch.Tensor, Given]:
    given = Given.of(with_places())
    normalised, patches = run.prepare(given.images)
    return patches, normalised, given


def test_a_teacher_asked_now_and_then_leaves_the_rest_to_the_bank(tmp_path: Path) -> None:
    run = learner("teacher.bank=true", "teacher.every=4", "mask.alpha_start=0.5")
    run.out = tmp_path
    run.open_bank(4)
    assert run.teacher is not None
    calls: list[int] = []
    run.teacher.register_forward_hook(lambda *_: calls.append(1))
    at = [step_info(), *(type(step_info())(step=1500 + i, steps_per_epoch=10, epochs=200, batch=4)
                         for i in range(1, 4))]  # fmt: skip
    for moment in at:
        difficulty = run.look(*parts(run), moment)[0].difficulty
        assert difficulty is not None
    assert len(calls) == 1


def test_without_a_teacher_hpm_costs_a_head_more_than_mae() -> None:
    mae = counted("mask.name=random", "objective.predict_loss=none")[0]
    bank, run = counted(*NONE)
    assert run.teacher is None
    assert bank - mae == 3 * 2 * 48 * 64


def test_it_is_off_and_asks_for_what_it_needs() -> None:
    assert not TeacherConfig().bank
    assert learner().bank is None
    with pytest.raises(UserError, match="every is 0, expected 1 or more, or 0 with bank"):
        tiny("teacher.every=0")
    with pytest.raises(UserError, match="predict_loss is none"):
        tiny("teacher.bank=true", "objective.predict_loss=none", "mask.name=random")
    with pytest.raises(UserError, match="bank_rate is 0"):
        tiny("teacher.bank=true", "teacher.bank_rate=0")


def test_its_quality_stands_beside_the_teachers() -> None:
    run = learner()
    pictures = torch.randn(6, 3, 32, 32, generator=rng())
    maps = torch.randint(0, 256, (6, 16), dtype=torch.uint8, generator=rng(1))
    found = bank_quality(run.student, run.teacher, maps, pictures, normalised=True)
    assert {"bank", "whole", "quarter", "contrast"} <= found.keys()
    assert all(-1 <= found["bank"][key] <= 1 for key in ("rank", "found"))
