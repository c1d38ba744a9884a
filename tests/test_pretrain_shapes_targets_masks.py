"""The acceptance list for Hard Patches Mining, 1 to 6: shapes, targets and masks.

Elsewhere: 2 and 3 (the released files, MAE's outputs) in test_pretrain_golden.py.
"""

from typing import Any

import pytest
import torch

from mimbench.training.batches import Batch
from mimbench.vit.positions import sincos_table
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.checkpoints.layouts import to_official
from pretrain.config import read_config
from pretrain.masks import MaskInput
from pretrain.masks.hard import Strategy as Hard
from pretrain.models.autoencoder import (
    DecoderConfig,
    MaskedAutoencoder,
    from_patches,
    split,
    to_patches,
)
from pretrain.models.reconstruction import (
    normalise_patches,
)
from tests.support.tiny_pretrain import learner, look, rng, step_info

# 1 ------------------------------------------------------------------------------------------------


def test_position_table() -> None:
    table = sincos_table(32, (4, 4), class_row=True)[0]
    assert not table[0].any()
    grid = table[1:].reshape(4, 4, 32)
    assert torch.equal(grid[0, :, :16], grid[3, :, :16])
    assert torch.equal(grid[:, 0, 16:], grid[:, 3, 16:])
    assert not torch.equal(grid[0, 0, :16], grid[0, 1, :16])


def test_the_largest_model_has_the_released_entries() -> None:
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
def test_parameter_counts_of_the_released_models(
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
def test_any_size_of_encoder_image_and_patch(change: list[str]) -> None:
    run = learner(*change)
    side = run.config.data.image_size
    batch = Batch(torch.arange(4), torch.randint(0, 256, (4, 3, side, side)).byte(), ())
    figures = run.loss(run.student, batch, step_info())
    figures["loss"].backward()
    assert torch.isfinite(figures["loss"])
    assert run.student.encoder.patch_embed.proj.weight.grad is not None


# 2, 3: golden -------------------------------------------------------------------------------------
# 4 ------------------------------------------------------------------------------------------------


def test_patches_have_their_channel_fastest_and_go_back() -> None:
    image = torch.arange(2 * 3 * 16 * 24.0).reshape(2, 3, 16, 24)
    patches = to_patches(image, 8)
    assert patches.shape == (2, 6, 192)
    # patch 4 is row 1, column 1; pixel (2, 5) of it, channel 1
    assert patches[1, 4, (2 * 8 + 5) * 3 + 1] == image[1, 1, 8 + 2, 8 + 5]
    assert torch.equal(from_patches(patches, 8, (2, 3)), image)


def test_normalised_targets() -> None:
    target = normalise_patches(torch.randn(3, 5, 768, generator=rng()) * 7 + 2)
    assert target.mean(-1).abs().max() < 1e-5
    assert (target.var(-1) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("target", ["pixels", "normalised"])
def test_visible_patches_never_touch_the_loss(target: str) -> None:
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


def test_hidden_pixels_never_reach_the_encoder() -> None:
    model = learner().student
    patches = torch.randn(2, 16, 192, generator=rng())
    visible, hidden = split(torch.arange(16).repeat(2, 1) % 4 > 0, 12)
    latent = model(patches, visible, hidden).latent
    changed = patches.scatter(1, hidden.unsqueeze(-1).expand(-1, -1, 192), 9.0)
    assert torch.equal(model(changed, visible, hidden).latent, latent)


def test_decoders_of_the_spec(tiny_spec: VitSpec) -> None:
    """The last block's shortcut for hidden tokens changes no output."""
    model = MaskedAutoencoder(
        tiny_spec, DecoderConfig(width=16, depth=2, heads=2), outputs=None, predictor=True
    )
    x = torch.randn(2, 17, 16, generator=rng())
    torch.testing.assert_close(model.reconstructor(x, 5), model.reconstructor(x, 17)[:, -5:])


# 5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "first"), [(200, 2), (400, 5), (800, 10), (1600, 21)])
def test_counts_of_hard_patches(epochs: int, first: int) -> None:
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
def test_row_sums(ratio: float, visible: int, final: int) -> None:
    strategy = Hard(ratio=ratio)
    inp = look(5, torch.randn(5, 196, generator=rng()))
    assert strategy.hard_count(inp) == final
    assert strategy(inp, rng()).sum(1).tolist() == [196 - visible] * 5


def test_rounding_and_impossible_ratios() -> None:
    assert masks.hidden_count(100, 0.9) == 90
    assert masks.hidden_count(256, 0.75) == 192
    for ratio, patches in ((0.0, 196), (1.0, 196), (0.01, 16), (0.99, 16)):
        if ratio == 0.01:
            assert masks.hidden_count(patches, ratio) == 1
        else:
            with pytest.raises(Exception, match="mask ratio"):
                masks.hidden_count(patches, ratio)


def test_the_first_epoch_is_random() -> None:
    one, other = (
        look(6, torch.randn(6, 196, generator=rng(s)), epoch_progress=1 / 200) for s in (1, 2)
    )
    assert Hard().idle(one)
    assert torch.equal(Hard()(one, rng()), Hard()(other, rng()))
    assert torch.equal(Hard()(one, rng()), masks.build({"name": "random"})(look(6), rng()))


# 6 ------------------------------------------------------------------------------------------------


def test_hardest_always_hidden_the_others_evenly() -> None:
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
def test_only_the_order_of_difficulty_matters(change: Any) -> None:
    q = torch.randn(7, 196, generator=rng())
    assert torch.equal(Hard()(look(7, change(q)), rng()), Hard()(look(7, q), rng()))


def test_ties_half_precision_and_a_batch_of_one() -> None:
    for q in (torch.zeros(1, 196), torch.randn(1, 196, generator=rng()).half()):
        mask = Hard()(look(1, q), rng())
        assert mask.sum() == 147
        assert torch.equal(Hard()(look(1, q.clone()), rng()), mask)


def test_images_steps_and_processes_differ_but_division_does_not_matter() -> None:
    for name in masks.available():
        strategy = masks.build({"name": name})
        if strategy.needs:
            continue
        whole = strategy(look(8), rng())
        assert len({tuple(row.tolist()) for row in whole}) == 8
        assert not torch.equal(strategy(look(8), rng(1)), whole)
        parts = [strategy(look(4, first=first, whole=8), rng()) for first in (0, 4)]
        assert torch.equal(torch.cat(parts), whole)


def test_ablations() -> None:
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
