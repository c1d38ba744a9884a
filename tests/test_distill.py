"""The distillation objective: AttMask's acceptance list, as far as it belongs to the objective."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import MaskInput
from pretrain.objectives.distill.config import AmountConfig, DistillObjectiveConfig
from pretrain.objectives.distill.learner import cosine, draw
from pretrain.objectives.distill.loss import DistillLoss, Logits
from tests.support.tiny_distill import at, batch, learner, rng


def shares(
    amount: AmountConfig, images: int, step: tuple[float, float] = (0.5, 0.5), seed: int = 0
) -> Tensor:
    inp = MaskInput(batch=images, grid=(14, 14), device=torch.device("cpu"))
    return draw(amount, inp, step, rng(seed)).share


def test_3_shares_per_step() -> None:
    run = learner("amount.probability=1")
    found = []
    for step in range(400):
        inp = MaskInput(batch=3, grid=(14, 14), device=torch.device("cpu"))
        one, other = (
            draw(run.config.amount, inp, run._shares(at(step)), rng(crop)) for crop in (0, 1)
        )
        assert torch.equal(one.share, other.share)
        assert len(one.share.unique()) == 1
        found.append((one.share[0].item(), one.again))
    drawn = torch.tensor(found)
    assert drawn.min() >= 0.1
    assert drawn.max() <= 0.5
    assert (drawn.mean(0) - 0.3).abs().max() < 0.02
    assert abs(torch.corrcoef(drawn.T)[0, 1]) < 0.15
    assert set((drawn[:, 0] * 196).long().tolist()) <= set(range(19, 98))
    each = shares(AmountConfig(per="crop", probability=1.0), 5_000)
    assert len(each.unique()) > 4_000
    assert abs(each.mean() - 0.3) < 0.01


def test_4_share_of_masked_crops() -> None:
    amount = AmountConfig()
    one, other = (shares(amount, 100_000, seed=seed) > 0 for seed in (0, 1))
    for crops in (one, other):
        assert abs(crops.float().mean() - 0.5) < 0.01
    assert abs((one & other).float().mean() - 0.25) < 0.01
    assert (shares(AmountConfig(probability=1.0), 100) > 0).all()
    assert (shares(AmountConfig(probability=0.0), 100) == 0).all()


def test_half_precision_leaves_the_class_loss_alone() -> None:
    """autocast takes a product of float32 tensors in half precision, whose sum a large batch overflows."""
    loss = DistillLoss(DistillObjectiveConfig(), 12)
    student, teacher = (Logits(torch.randn(8, 12, generator=rng(i)) * 20, None) for i in (0, 1))
    wanted = loss.class_loss(student, teacher, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.class_loss(student, teacher, 0.05)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)


def test_patches_with_a_layer_of_their_own_need_a_loss() -> None:
    with pytest.raises(UserError, match=r"would never learn; set head\.shared: true"):
        learner("objective.patch_weight=0", "head.shared=false")


def test_6_only_global_crops_are_masked_and_the_teacher_sees_all(monkeypatch: Any) -> None:
    run = learner("amount.probability=1")
    seen: list[tuple[str, Tensor]] = []
    vit = type(run.student.backbone)
    masked, plain = vit.embed_masked, vit.embed

    def embed_masked(self: Any, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        seen.append(("masked", images))
        assert self is run.student.backbone
        assert mask.any(1).all()
        return masked(self, images, mask, token)

    def embed(self: Any, images: Tensor) -> Tensor:
        seen.append(("teacher" if self is run.teacher.backbone else "local", images))
        return plain(self, images)

    monkeypatch.setattr(vit, "embed_masked", embed_masked)
    monkeypatch.setattr(vit, "embed", embed)
    run.loss(run.student, batch(), at())
    assert [(kind, tuple(x.shape)) for kind, x in seen] == [
        ("teacher", (8, 3, 32, 32)),
        ("masked", (8, 3, 32, 32)),
        ("local", (12, 3, 16, 16)),
    ]
    assert torch.equal(seen[0][1], seen[1][1])
    first = run.normalise.of_bytes(batch().data["global"][:, 0])
    assert torch.equal(seen[0][1][:4], first)


def test_6_each_crops_mask_follows_its_own_attention() -> None:
    run = learner("amount.probability=1", "mask.order=high")
    attention = torch.rand(8, 16, generator=rng())
    mask = run.hide(attention, 4, at())
    count = int(mask.sum(1)[0])
    assert mask.gather(1, attention.argsort(1, descending=True)[:, :count]).all()
    order = torch.tensor([2, 0, 3, 1])
    moved = run.hide(torch.cat([attention[:4][order], attention[4:][order]]), 4, at())
    assert torch.equal(moved, torch.cat([mask[:4][order], mask[4:][order]]))


def test_7_a_hidden_patch_is_the_mask_vector_at_its_own_position() -> None:
    vit = learner().student.backbone
    token = torch.randn(1, 1, 1, 24, generator=rng())
    images = torch.randn(2, 3, 32, 32, generator=rng())
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = True
    found, plain = vit.embed_masked(images, mask, token), vit.embed(images)
    assert vit.pos_embed is not None
    torch.testing.assert_close(found[0, 6], (token.flatten() + vit.pos_embed[0, 6]).detach())
    different = (found != plain).any(-1)
    assert different.nonzero().tolist() == [[0, 6]]
    changed = images.clone()
    changed[0, :, 8:16, 8:16] = 7.0
    assert torch.equal(vit.embed_masked(changed, mask, token), found)


def test_8_a_cleared_image_halves_the_patch_loss() -> None:
    criterion = DistillLoss(DistillObjectiveConfig(), 5)
    student, teacher = torch.randn(2, 2, 4, 5, generator=rng()).unbind(0)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    each = -((teacher / 0.05).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1)
    wanted = each[0, [0, 2]].mean() / 2
    torch.testing.assert_close(criterion.patch_loss(student, teacher, mask, 0.05), wanted)
    nothing = criterion.patch_loss(student, teacher, torch.zeros_like(mask), 0.05)
    assert nothing == 0


def test_9_pairs() -> None:
    """Each pair of different crops counts once; of the same crop never."""
    criterion = DistillLoss(DistillObjectiveConfig(), 6)
    b, crops = 3, 12
    source = rng()
    teacher = torch.randn(2 * b, 6, generator=source)
    student = torch.randn(crops * b, 6, generator=source)
    said = Logits(student[: 2 * b], None, student[2 * b :])
    found = criterion.class_loss(said, Logits(teacher, None), 0.05)
    terms = []
    for q in range(2):
        for v in range(crops):
            if q != v:
                p = (teacher[q * b : (q + 1) * b] / 0.05).softmax(-1)
                log_q = (student[v * b : (v + 1) * b] / 0.1).log_softmax(-1)
                terms.append(-(p * log_q).sum(-1).mean())
    assert len(terms) == 22
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_10_the_teacher_follows_every_common_parameter() -> None:
    run = learner()
    before = {n: p.clone() for n, p in run.teacher.named_parameters()}
    with torch.no_grad():
        for p in run.student.parameters():
            p.add_(torch.randn(p.shape, generator=rng()))
    own = dict(run.student.named_parameters())
    assert set(own) - set(before) == {"mask_token"}
    run.teacher.follow(0.9)
    for name, p in run.teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * own[name])
        assert not p.requires_grad
    assert cosine(0.996, 1.0, 0.0) == 0.996
    assert cosine(0.996, 1.0, 1.0) == 1.0
    assert cosine(0.0, 1.0, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [1, 20, 50])
def test_10_after_a_step_the_teacher_follows_by_that_steps_momentum(step: int) -> None:
    """The momentum rises on half a cosine over the run, from the first step's own value on."""
    run = learner("teacher_momentum=0.9")
    run.loss(run.student, batch(), at(step - 1))
    before = {n: p.clone() for n, p in run.teacher.named_parameters()}
    with torch.no_grad():
        for p in run.student.parameters():
            p.add_(torch.randn(p.shape, generator=rng()))
    own = dict(run.student.named_parameters())
    # the loop hands over a place that counts the step just taken
    run.after_update(at(step))
    keep = 1 - 0.1 * (1 + math.cos(math.pi * (step - 1) / 50)) / 2
    for name, p in run.teacher.named_parameters():
        torch.testing.assert_close(p, keep * before[name] + (1 - keep) * own[name])


def test_12_other_sizes_nothing_hidden_and_every_mask() -> None:
    for change in (
        ["amount.ratio=0", "amount.spread=0"],
        ["amount.start_epoch=100"],
        ["data.locals=0"],
        ["encoder.patch=4", "amount.probability=1"],
        ["mask.name=random", "amount.per=crop"],
        ["mask.name=block"],
        ["mask.name=grid"],
        ["objective.patch_weight=0"],
        ["head.shared=false", "head.norm_last=true", "machine.recompute=true"],
    ):
        run = learner(*change)
        data = batch()
        if run.config.data.locals == 0:
            del data.data["local"]
        figures = run.loss(run.student, data, at())
        figures["loss"].backward()
        assert torch.isfinite(figures["loss"]), change
        assert ("patch" in figures) == (run.config.objective.patch_weight > 0)
        if "ratio" in change[0] or "start_epoch" in change[0]:
            assert figures["hidden"] == 0


def test_attention_is_asked_for_only_where_masks_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    for name in ("attention", "random"):
        run = learner(f"mask.name={name}")
        original = type(run.teacher).forward

        def forward(self: Any, images: Tensor, *, attention: bool, original: Any = original) -> Any:
            asked.append(attention)
            return original(self, images, attention=attention)

        with monkeypatch.context() as patch:
            patch.setattr(type(run.teacher), "forward", forward)
            run.loss(run.student, batch(), at())
    assert asked == [True, False]
