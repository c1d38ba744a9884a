"""The distillation objective: head, loss, centres and masks, equal to the released code's numbers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mimbench.batches import Batch
from mimbench.config import load_yaml, to_mapping
from mimbench.errors import UserError
from mimbench.learner import Moment
from pretrain.distill.config import (
    DistillConfig,
    HeadConfig,
    LawConfig,
    ObjectiveConfig,
    ViewsConfig,
)
from pretrain.distill.head import Head
from pretrain.distill.learner import Distillation, cosine, draw
from pretrain.distill.loss import DistillLoss, Said
from pretrain.distill.views import MultiCrops
from pretrain.masks import MaskInput
from pretrain.recipes import DISTILLATION, DISTILLATION_BASE, read_recipe

TINY = [
    "encoder.patch=8",
    "encoder.width=24",
    "encoder.depth=2",
    "encoder.heads=2",
    "head.outputs=12",
    "head.hidden=16",
    "head.bottleneck=8",
    "data.image_size=32",
    "data.local_size=16",
    "data.locals=3",
    "data.root=/nowhere",
    "training.batch=4",
    "training.epochs=10",
    "training.precision=fp32",
    "machine.device=cpu",
]


def tiny(*overrides: str, recipe: str = "attmask_vit_small_16_100") -> DistillConfig:
    config = read_recipe(recipe, [*TINY, *overrides])
    assert isinstance(config, DistillConfig)
    return config


def learner(*overrides: str) -> Distillation:
    torch.manual_seed(0)
    return Distillation(tiny(*overrides), torch.device("cpu"), Path("unused"))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4) -> Batch:
    source = rng(3)
    data = {
        "global": torch.randint(0, 256, (count, 2, 3, 32, 32), dtype=torch.uint8, generator=source),
        "local": torch.randint(0, 256, (count, 3, 3, 16, 16), dtype=torch.uint8, generator=source),
    }
    return Batch(torch.arange(count), data, ())


def at(step: int = 20) -> Moment:
    return Moment(step=step, steps_per_epoch=5, epochs=10, batch=4)


def close(found: Tensor, wanted: Tensor, what: str = "") -> None:
    assert found.shape == wanted.shape, what
    error = (found.detach() - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-5, f"{what}: {error}"


# the released code's numbers ----------------------------------------------------------------------


def test_head(golden: Path) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(golden / "dino_head.npz").items()}
    state = {k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}
    hidden, width = state["mlp.0.weight"].shape
    outputs, bottleneck = state["last_layer.weight_v"].shape
    head = Head(width, HeadConfig(outputs=outputs, hidden=hidden, bottleneck=bottleneck))
    head.load_state_dict(state)
    close(head(arrays["x"]), arrays["y"])
    close(head.patches(arrays["x"]), arrays["y"])


@pytest.fixture
def arrays(golden: Path) -> dict[str, Tensor]:
    found = {}
    for name, value in np.load(golden / "ibot_loss.npz").items():
        found[name] = torch.as_tensor(value)
    return found


def test_loss_gradients_and_centres(arrays: dict[str, Tensor]) -> None:
    config = ObjectiveConfig(
        student_temperature=float(arrays["student_temp"]),
        centre_momentum=float(arrays["center_momentum"]),
        temperature_epochs=10,
    )
    assert config.temperature(3) == pytest.approx(float(arrays["teacher_temp"]))
    criterion = DistillLoss(config, arrays["center_before"].shape[-1])
    criterion.centre.copy_(arrays["center_before"])
    criterion.patch_centre.copy_(arrays["patch_center_before"])
    names = ("student_cls", "student_patch", "student_local_cls")
    inputs = [arrays[name].requires_grad_() for name in names]
    mask = arrays["mask"].flatten(0, 1).flatten(1)
    teacher = Said(arrays["teacher_cls"], arrays["teacher_patch"])
    figures = criterion(Said(*inputs), teacher, mask, config.temperature(3))
    close(figures["cls"], arrays["cls_loss"])
    close(figures["patch"], arrays["patch_loss"])
    close(figures["loss"], arrays["loss"])
    figures["loss"].backward()
    for name, value in zip(names, inputs, strict=True):
        assert value.grad is not None
        close(value.grad, arrays[f"grad_{name}"], name)
    assert torch.equal(criterion.centre, arrays["center_before"])
    criterion.follow()
    close(criterion.centre, arrays["center_after"])
    close(criterion.patch_centre, arrays["patch_center_after"])


# the acceptance list of AttMask: what belongs to its objective --------------------------------------


def shares(
    law: LawConfig, images: int, step: tuple[float, float] = (0.5, 0.5), seed: int = 0
) -> Tensor:
    inp = MaskInput(batch=images, grid=(14, 14), device=torch.device("cpu"))
    return draw(law, inp, step, rng(seed)).share


def test_3_shares_per_step() -> None:
    run = learner("law.probability=1")
    found = []
    for step in range(400):
        inp = MaskInput(batch=3, grid=(14, 14), device=torch.device("cpu"))
        one, other = (
            draw(run.config.law, inp, run._shares(at(step)), rng(crop)) for crop in (0, 1)
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
    each = shares(LawConfig(per="crop", probability=1.0), 5_000)
    assert len(each.unique()) > 4_000
    assert abs(each.mean() - 0.3) < 0.01


def test_4_share_of_masked_crops() -> None:
    law = LawConfig()
    one, other = (shares(law, 100_000, seed=seed) > 0 for seed in (0, 1))
    for crops in (one, other):
        assert abs(crops.float().mean() - 0.5) < 0.01
    assert abs((one & other).float().mean() - 0.25) < 0.01
    assert (shares(LawConfig(probability=1.0), 100) > 0).all()
    assert (shares(LawConfig(probability=0.0), 100) == 0).all()


def test_6_only_global_crops_are_masked_and_the_teacher_sees_all(monkeypatch: Any) -> None:
    run = learner("law.probability=1")
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
    first = (batch().data["global"][:, 0].float() / 255 - run.mean) / run.std
    assert torch.equal(seen[0][1][:4], first)


def test_6_each_crops_mask_follows_its_own_attention() -> None:
    run = learner("law.probability=1", "mask.order=high")
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
    criterion = DistillLoss(ObjectiveConfig(), 5)
    student, teacher = torch.randn(2, 2, 4, 5, generator=rng()).unbind(0)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    each = -((teacher / 0.05).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1)
    wanted = each[0, [0, 2]].mean() / 2
    torch.testing.assert_close(criterion.patch_loss(student, teacher, mask, 0.05), wanted)
    nothing = criterion.patch_loss(student, teacher, torch.zeros_like(mask), 0.05)
    assert nothing == 0


def test_9_pairs() -> None:
    """Each pair of different crops counts once; of the same crop never."""
    criterion = DistillLoss(ObjectiveConfig(), 6)
    b, crops = 3, 12
    source = rng()
    teacher = torch.randn(2 * b, 6, generator=source)
    student = torch.randn(crops * b, 6, generator=source)
    said = Said(student[: 2 * b], None, student[2 * b :])
    found = criterion.class_loss(said, Said(teacher, None), 0.05)
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


def test_12_other_sizes_nothing_hidden_and_every_mask() -> None:
    for change in (
        ["law.ratio=0", "law.spread=0"],
        ["law.start_epoch=100"],
        ["data.locals=0"],
        ["encoder.patch=4", "law.probability=1"],
        ["mask.name=random", "law.per=crop"],
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


# step by step -------------------------------------------------------------------------------------


def test_schedules_clipping_and_the_frozen_layer() -> None:
    run = learner("optimizer.clip_grad=0.01", "optimizer.warmup_epochs=0")
    run.loss(run.student, batch(), at(0))["loss"].backward()
    run.before_update(at(0))
    assert run.student.head.last_layer.weight_v.grad is None
    assert run.student.head.last_layer.weight_g.grad is None
    norms = [p.grad.norm() for p in run.student.parameters() if p.grad is not None]
    assert max(norms) < 0.0100001
    assert sum(norm > 0.0099 for norm in norms) > 5
    decays = [g["weight_decay"] for g in run.optimizer.param_groups]
    assert decays == pytest.approx([0.04, 0.0])
    run.loss(run.student, batch(), at(5))["loss"].backward()
    run.before_update(at(25))
    assert run.student.head.last_layer.weight_v.grad is not None
    assert run.optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.22)
    assert all(p.ndim > 1 for p in run.optimizer.param_groups[0]["params"])
    assert run.rate(at(50)) == pytest.approx(1e-6)
    assert run.rate(at(0)) == pytest.approx(5e-4 * 4 / 256)


def test_micro_batches_move_the_centres_like_one_batch() -> None:
    one, two = (DistillLoss(ObjectiveConfig(), 6) for _ in range(2))
    logits, patches = torch.randn(8, 6, generator=rng()), torch.randn(8, 4, 6, generator=rng())
    one.note(Said(logits, patches))
    for part in ([0, 1, 4, 5], [2, 3, 6, 7]):
        two.note(Said(logits[part], patches[part]))
    for criterion in (one, two):
        criterion.follow()
        assert not criterion.seen
    torch.testing.assert_close(one.centre, two.centre)
    torch.testing.assert_close(one.patch_centre, two.patch_centre)
    torch.testing.assert_close(one.centre, 0.1 * logits.mean(0, keepdim=True))


def test_fixed_gains() -> None:
    head = Head(8, HeadConfig(outputs=5, hidden=6, bottleneck=4, norm_last=True))
    assert not head.last_layer.weight_g.requires_grad
    assert isinstance(head.mlp[0], nn.Linear)
    norms = head.project(torch.randn(3, 8)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3), rtol=1e-5, atol=0)


class Flat:
    """One grey picture."""

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> Tensor:
        return torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8, generator=rng(index))

    def name(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("colour", [True, False])
def test_crops(colour: bool) -> None:
    config = ViewsConfig(image_size=32, local_size=16, locals=4, colour=colour)
    crops = MultiCrops(Flat(), config)
    torch.manual_seed(0)
    views = crops[0]
    assert views["global"].shape == (2, 3, 32, 32)
    assert views["local"].shape == (4, 3, 16, 16)
    assert views["global"].dtype == torch.uint8
    torch.manual_seed(0)
    assert torch.equal(crops[0]["local"], views["local"])
    assert len({tuple(v.flatten().tolist()) for v in views["local"]}) == 4
    none = MultiCrops(Flat(), replace(config, locals=0))[0]
    assert none.keys() == {"global"}


# recipes ------------------------------------------------------------------------------------------


def test_base_spells_out_every_default() -> None:
    base, own = load_yaml(DISTILLATION_BASE), to_mapping(DistillConfig())
    same_in_file = {"training", "machine"}
    assert base.keys() == own.keys()
    for name, value in own.items():
        if name in same_in_file:
            assert base[name].keys() <= value.keys()
        elif name != "encoder":
            assert base[name] == value, name


@pytest.mark.parametrize("path", sorted(DISTILLATION.glob("*_*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_says_what_it_stands_for(path: Path) -> None:
    config = read_recipe(path.stem, [])
    assert isinstance(config, DistillConfig)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Published" in line or "Reported" in line for line in header)
    assert any("k-NN" in line for line in header)
    assert config.spec().embed_dim == 384
    assert math.isclose(config.optimizer.base_lr, 5e-4)


def test_published_settings() -> None:
    long = read_recipe("attmask_vit_small_16_300", [])
    assert isinstance(long, DistillConfig)
    assert (long.training.batch, long.training.epochs) == (800, 300)
    assert long.data.global_scale == (0.32, 1.0)
    assert long.mask["order"] == "high"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mask.name=hard", "need difficulty, which distillation does not offer"),
        ("mask.name=adversarial", "need generator"),
        ("law.ratio=0.9", "leaves the range"),
        ("law.probability=2", "probability is 2"),
        ("data.local_size=18", "local crops of 18 do not divide into patches of 8"),
        ("hed.outputs=3", "unknown key 'hed'.*did you mean 'head'"),
    ],
)
def test_mistakes(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(override)
    with pytest.raises(UserError, match="no config 'attmask_vit_smal_16_100'; did you mean"):
        read_recipe("attmask_vit_smal_16_100", [])
