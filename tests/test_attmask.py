"""AttMask: masks equal to the released code's, and the acceptance list of its method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from pretrain.masks import Amount, MaskInput
from pretrain.masks.attention import Strategy
from pretrain.models.attention import backbone_attention
from pretrain.models.autoencoder import DecoderConfig, MaskedAutoencoder, to_patches
from pretrain.models.teacher import Teacher


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(attention: Tensor, share: float | Tensor | None = None, again: float = 0.3) -> MaskInput:
    amount = None
    if share is not None:
        amount = Amount(share=torch.as_tensor(share).expand(len(attention)), again=again)
    return MaskInput(
        batch=len(attention),
        grid=(14, 14),
        device=torch.device("cpu"),
        attention=attention,
        amount=amount,
    )


@pytest.fixture
def attention() -> Tensor:
    return torch.rand(40, 196, generator=rng(7)).softmax(1)


def test_masks_of_the_released_code(golden: Path) -> None:
    arrays = np.load(golden / "attmask.npz")
    found = torch.from_numpy(arrays["attention"])
    ratios = sorted({float(k.split("_")[1]) for k in arrays if k.startswith("high_")})
    assert ratios
    for ratio in ratios:
        inp = look(found, ratio)
        for order in ("high", "low"):
            mask = Strategy(order=order)(inp, rng())
            assert np.array_equal(mask.numpy(), arrays[f"{order}_{ratio:g}"]), (order, ratio)
    top = torch.from_numpy(arrays["hint_top_set_0.1"])
    high = Strategy()(look(found, 0.5), rng())
    for seed in range(20):
        hint = Strategy(order="hint")(look(found, 0.5), rng(seed))
        assert (high & ~hint & ~top).sum() == 0
        assert (hint & ~high).sum() == 0


def by_hand(weights: dict[str, Tensor], x: Tensor, at: str, heads: int) -> Tensor:
    normed = torch.nn.functional.layer_norm(
        x, x.shape[-1:], weights[f"{at}norm1.weight"], weights[f"{at}norm1.bias"], 1e-6
    )
    qkv = normed @ weights[f"{at}attn.qkv.weight"].T + weights[f"{at}attn.qkv.bias"]
    q, k, _ = qkv.reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0, 1:]


def test_1_the_class_tokens_row_and_no_gradient(tiny_spec: VitSpec) -> None:
    torch.manual_seed(0)
    shape = DecoderConfig(width=32, depth=1, heads=4)
    student = MaskedAutoencoder(tiny_spec, shape, outputs=None, predictor=True)
    teacher = Teacher(student)
    patches = to_patches(torch.randn(2, 3, 64, 64), 16).requires_grad_()
    found = teacher.attend(patches)
    assert found.shape == (2, 3, 16)
    assert not found.requires_grad
    state = teacher.encoder.state_dict()
    x = teacher.encoder.run(teacher.encoder.embed(patches), 2).detach()
    torch.testing.assert_close(found, by_hand(state, x, "blocks.2.", 3))
    assert (found.sum(-1) < 1).all()
    views = teacher(patches, difficulty=True, attention=True)
    torch.testing.assert_close(views.attention, found)
    plain = teacher(patches, difficulty=True)
    assert plain.attention is None
    torch.testing.assert_close(views.features, plain.features)
    torch.testing.assert_close(views.difficulty, plain.difficulty)


def test_1_only_the_last_block_forms_probabilities(
    tiny_spec: VitSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = DecoderConfig(width=32, depth=1, heads=4)
    teacher = Teacher(MaskedAutoencoder(tiny_spec, shape, outputs=None, predictor=False))
    fused, softmax = [], []
    original = torch.nn.functional.scaled_dot_product_attention
    plain = Tensor.softmax

    def count_fused(*args: Any, **kwargs: Any) -> Tensor:
        fused.append(1)
        return original(*args, **kwargs)

    def count_softmax(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        softmax.append(self.shape)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count_fused)
    monkeypatch.setattr(Tensor, "softmax", count_softmax)
    teacher.attend(torch.randn(2, 16, 768))
    assert len(fused) == 2
    assert softmax == [(2, 3, 1, 17)]


@pytest.mark.parametrize("position", ["absolute", "relative", "rotary"])
def test_1_any_backbone_shows_the_same_row(tiny_spec: VitSpec, position: Any) -> None:
    spec = replace(tiny_spec, position=position)
    weights = random_weights(spec, seed=1)
    moved = {
        k: v + 0.05 * torch.randn(v.shape, generator=rng(2)) for k, v in weights.tensors.items()
    }
    backbone = build_backbone(replace(weights, tensors=moved))
    images = torch.rand(2, 3, 64, 64, generator=rng())
    found = backbone_attention(backbone, images)
    assert found.shape == (2, 3, 16)
    # what the class token gathers from the values must be what the fused kernel gathers
    gathered: list[Tensor] = []
    block = backbone.vit.get_submodule("blocks.2")
    block.get_submodule("attn.proj").register_forward_hook(
        lambda _, inputs, __: gathered.append(inputs[0])
    )
    incoming: list[Any] = []
    block.get_submodule("norm1").register_forward_hook(
        lambda _, __, output: incoming.append(output)
    )
    backbone(images)
    values = block.get_submodule("attn.qkv")(incoming[0])[..., 96:]
    values = values.reshape(2, 17, 3, 16).transpose(1, 2)
    row = torch.cat([1 - found.sum(-1, keepdim=True), found], dim=-1)
    attended = (row.unsqueeze(2) @ values).transpose(1, 2).reshape(2, 48)
    reached = gathered[0]
    reached = reached[:, 0] if reached.ndim == 3 else reached[0, 0]
    torch.testing.assert_close(attended, reached, rtol=1e-4, atol=1e-5)


def test_2_high_and_low(attention: Tensor) -> None:
    high, low = (Strategy(order=o)(look(attention, 0.3), rng()) for o in ("high", "low"))
    order = attention.argsort(1, descending=True)
    assert high.sum(1).tolist() == low.sum(1).tolist() == [58] * 40
    assert high.gather(1, order[:, :58]).all()
    assert low.gather(1, order[:, -58:]).all()
    assert not (high & low).any()


@pytest.mark.parametrize("again", [0.1, 0.23, 0.3, 0.5])
def test_5_hint_shows_a_few_of_the_most_attended(attention: Tensor, again: float) -> None:
    share = torch.full((40,), 0.3)
    share[::2] = 0.0
    inp = look(attention, share, again)
    mask = Strategy(order="hint")(inp, rng())
    high = Strategy()(inp, rng())
    shown = high & ~mask
    count = int(0.1 * again * 196)
    assert 1 <= count <= 9
    assert not mask[::2].any()
    assert shown[1::2].sum(1).tolist() == [count] * 20
    assert mask[1::2].sum(1).tolist() == [58 - count] * 20
    top = attention.argsort(1, descending=True)[:, :19]
    assert torch.equal(shown.gather(1, top).sum(1), shown.sum(1))
    assert len({tuple(r.tolist()) for r in shown[1::2].gather(1, top[1::2])}) > 10


def test_5_in_reconstruction_a_hint_changes_places(attention: Tensor) -> None:
    strategy = Strategy(order="hint")
    inp = look(attention)
    mask, high = strategy(inp, rng()), Strategy()(inp, rng())
    assert mask.sum(1).tolist() == [147] * 40
    assert (high & ~mask).sum(1).tolist() == [strategy.shown(inp)] * 40
    assert strategy.shown(inp) == 14


def test_5_a_grid_too_small_for_a_hint_says_so() -> None:
    with pytest.raises(
        UserError, match=r"of 16 patches, mask.show 0.1 at a ratio of 0.5 shows none"
    ):
        Strategy(order="hint", ratio=0.5).count(16)
    assert Strategy(order="hint", ratio=0.5, show=0.25).count(16) == 8
    assert Strategy(order="hint", ratio=0.75).count(16) == 12


def test_6_masks_follow_their_images(attention: Tensor) -> None:
    order = torch.randperm(40, generator=rng())
    mask = Strategy()(look(attention), rng())
    assert torch.equal(Strategy()(look(attention[order]), rng()), mask[order])


def test_8_guided_share_in_reconstruction(attention: Tensor) -> None:
    wide = attention[:1].expand(20_000, -1)
    guided = Strategy()(look(attention[:1]), rng())
    mask = Strategy(probability=0.5)(look(wide), rng())
    assert mask.sum(1).eq(147).all()
    assert abs((mask == guided).all(1).float().mean() - 0.5) < 0.01
    assert Strategy(probability=0.0).idle(look(attention))
    none = Strategy(probability=0.0)(look(attention), rng())
    assert not torch.equal(none, Strategy()(look(attention), rng()))
    assert not Strategy().idle(look(attention))


def test_8_soft_masks_sample_in_proportion(attention: Tensor) -> None:
    chance = torch.tensor([8.0, 4, 2, 1, 1]) / 16
    wide = torch.cat([chance, torch.full((191,), 1e-9)]).expand(40_000, -1)
    mask = Strategy(soft=1.0, ratio=0.005)(look(wide), rng())
    assert mask.sum(1).eq(1).all()
    assert (mask.float().mean(0)[:5] - chance).abs().max() < 0.01
    assert torch.equal(
        Strategy(soft=0.0)(look(attention), rng()), Strategy()(look(attention), rng(1))
    )


def test_12_other_grids_and_nothing_hidden() -> None:
    for order in ("high", "hint", "low"):
        inp = MaskInput(
            batch=3,
            grid=(3, 5),
            device=torch.device("cpu"),
            attention=torch.rand(3, 15, generator=rng()),
            amount=Amount(share=torch.zeros(3), again=0.0),
        )
        assert not Strategy(order=order)(inp, rng()).any()


def test_wrong_settings_say_so() -> None:
    with pytest.raises(ValueError, match="show is 1.5, expected a share"):
        Strategy(show=1.5)
    with pytest.raises(ValueError, match="soft is -1"):
        Strategy(soft=-1)


def test_a_backbone_without_class_token_is_refused(tiny_weights: VitWeights) -> None:
    spec = replace(tiny_weights.spec, class_token=False)
    with pytest.raises(UserError, match="no class token"):
        backbone_attention(build_backbone(random_weights(spec, 0)), torch.rand(1, 3, 64, 64))
