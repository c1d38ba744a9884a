"""Several masks of one image: one look of the teacher, parts of one permutation, and their price."""

import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain import masks
from tests.support.tiny_pretrain import images, learner, look, rng, step_info
from tests.test_hpm_cheap import SHARED, counted


def masks_of(*changes: str, parts: tuple[int, ...] = (4,)) -> Tensor:
    """Return a step's masks (masks, b, n) of four images, the batch divided into parts."""
    run, found, first = learner(*changes), [], 0
    seen: list[tuple[Tensor, ...]] = []
    run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    batch = images()
    for size in parts:
        part = batch._replace(
            indices=batch.indices[first : first + size], data=batch.data[first : first + size]
        )
        run.loss(run.student, part, step_info(first=first))
        hidden = seen[-1][2]
        mask = torch.zeros(len(hidden), 16, dtype=torch.bool).scatter_(1, hidden, value=True)
        found.append(mask.view(-1, size, 16))
        first += size
    return torch.cat(found, dim=1)


def test_random_masks_of_an_image_show_parts_of_one_permutation() -> None:
    found = masks_of("mask.name=random", "objective.masks=4")
    assert found.shape == (4, 4, 16)
    # a quarter each: no patch is seen twice, and all are seen once
    assert ((~found).sum(0) == 1).all()
    assert torch.equal(found[0], masks_of("mask.name=random")[0])
    halves = masks_of("mask.name=random", "objective.masks=2")
    assert not (~halves[0] & ~halves[1]).any()


def test_hard_masks_share_their_hard_patches() -> None:
    found = masks_of("mask.name=hard", "mask.alpha_start=0.5", "objective.masks=2")
    assert (found[0] & found[1]).sum(1).min() >= 6
    assert not torch.equal(found[0], found[1])
    assert not (~found[0] & ~found[1]).any()


def test_every_strategy_still_hides_as_many() -> None:
    inp = look(3)
    for name in ("block", "rolled", "multiblock", "colour", "even", "grid"):
        strategy = masks.build({"name": name})
        for turn in (0.25, 0.5):
            turned = look(3, turn=turn)
            mask = strategy(turned, rng())
            assert mask.sum(1).tolist() == [strategy.count(196)] * 3, name
            assert not torch.equal(mask, strategy(inp, rng())), name


def test_the_division_of_a_batch_changes_nothing() -> None:
    changes = ("mask.name=hard", "objective.masks=3")
    assert torch.equal(masks_of(*changes), masks_of(*changes, parts=(1, 3)))


def test_the_teacher_looks_once() -> None:
    run = learner("objective.masks=3")
    assert run.teacher is not None
    calls: list[int] = []
    run.teacher.register_forward_hook(lambda *_: calls.append(1))
    figures = run.loss(run.student, images(), step_info())
    figures["loss"].backward()
    assert calls == [1]
    run.masks.settle()
    assert run.masks.summary()["images"] == 12


@pytest.mark.parametrize("target", ["normalised", "ema", "hog"])
def test_the_loss_is_the_mean_over_the_masks(target: str) -> None:
    """One by one, with each mask's own part of the loss."""
    changes = ("mask.name=random", "objective.masks=2", f"objective.target={target}")
    run = learner(*changes, "objective.predict_loss=none")
    seen: list[tuple[Tensor, ...]] = []
    run.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    loss = run.loss(run.student, images(), step_info())["loss"]
    patches, visible, hidden = (part.chunk(2) for part in seen[0])
    given = images()
    views = None if run.teacher is None else run.teacher(patches[0], difficulty=False)
    single = [
        run.patch_losses(
            run.student(patches[k], visible[k], hidden[k]).prediction,
            patches[k],
            given.data,
            hidden[k],
            views,
        ).mean()
        for k in (0, 1)
    ]
    torch.testing.assert_close(loss, torch.stack(single).mean())


def test_what_several_masks_cost() -> None:
    """The teacher once; encoder, decoders and losses for each."""
    random = ("mask.name=random", "objective.predictor=shared", "objective.exit=2")
    student, _ = counted(*random)
    one, _ = counted("objective.predictor=shared", "objective.exit=2")
    teacher = one - student
    assert teacher > 0
    for count in (2, 4):
        found, _ = counted(
            "objective.predictor=shared", "objective.exit=2", f"objective.masks={count}"
        )
        assert found - teacher == count * student
    assert counted(*random, "objective.masks=2")[0] == 2 * student


def test_no_mask_is_refused() -> None:
    with pytest.raises(UserError, match="masks is 0, expected 1 or more"):
        learner(*SHARED, "objective.masks=0")
    with pytest.raises(UserError, match="masks=1"):
        learner("mask.name=adversarial", "objective.predict_loss=none", "objective.masks=2")
