"""Masks of published rules: equal to the released code's where it is seeded, to its statistics where not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain import masks
from pretrain.config import read_config
from pretrain.masks import Amount, colour, even, hide_largest, multiblock, rolled
from pretrain.masks.salience import outgoing
from pretrain.objectives.recipes import read_recipe
from pretrain.viewing.mask_statistics import describe
from tests.support.tiny_pretrain import look, rng

COLOURS = ("red", "blue", "green", "purple")


def load(golden: Path, name: str) -> dict[str, Tensor]:
    with np.load(golden / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def drawn(name: str, count: int, **fields: object) -> Tensor:
    """Return masks on a 14 x 14 grid."""
    return masks.build({"name": name, **fields})(look(count), rng())


@pytest.mark.parametrize("name", COLOURS)
def test_noise_of_a_colour(golden: Path, name: str) -> None:
    """Filters, and which places stay visible, at two ratios."""
    found = load(golden, "colormae")
    width, *wide = found[f"sigma_{name}"].flatten().tolist()
    noise = found["white_noise"]
    ours = colour.filtered(noise, name, width, wide[0] if wide else None)
    torch.testing.assert_close(ours, found[f"{name}/map"], atol=1e-6, rtol=1e-5)
    window = found[f"{name}/window"].flatten(1)
    for ratio, key in ((0.75, "mask"), (0.9, "mask_0.9")):
        count = masks.hidden_count(196, ratio)
        assert torch.equal(hide_largest(-window, count), found[f"{name}/{key}"])


def test_colours_have_the_grain_and_no_place_of_their_own() -> None:
    clumping, border = {}, {}
    for name in COLOURS:
        found = drawn("colour", 1500, order=name)
        row = describe(name, found.unsqueeze(0), (14, 14), objects=None, loss=None)
        clumping[name] = row.clumping
        where = row.where
        ring = torch.cat([where[0], where[-1], where[1:-1, 0], where[1:-1, -1]])
        border[name] = (ring.mean() / where[4:10, 4:10].mean()).item()
    assert clumping["purple"] < 1 < clumping["green"] < clumping["red"]
    assert clumping["blue"] < 1
    assert clumping["green"] == pytest.approx(1.14, abs=0.02)
    for name in ("blue", "green", "purple"):
        assert border[name] == pytest.approx(1.0, abs=0.03)


def test_spectra_of_the_colours() -> None:
    noise = torch.randn(64, 28, 28, generator=rng())
    radius = torch.fft.fftfreq(28).view(-1, 1).square() + torch.fft.rfftfreq(28).square()
    low, high = radius.sqrt() < 0.06, radius.sqrt() > 0.4
    middle = (radius.sqrt() > 0.12) & (radius.sqrt() < 0.2)
    power = {}
    for name in ("white", *COLOURS):
        maps = noise if name == "white" else colour.filtered(noise, name, 1.0, 2.0)
        spectrum = torch.fft.rfft2(maps).abs().square().mean(0)
        power[name] = [spectrum[part].mean().item() for part in (low, middle, high)]
    assert power["red"][2] < 0.01 * power["white"][2]
    assert power["blue"][0] < 0.05 * power["white"][0]
    assert power["green"][1] > 3 * max(power["green"][0], power["green"][2])
    assert power["purple"][1] < 0.6 * min(power["purple"][0], power["purple"][2])


@pytest.mark.parametrize("kind", ["block", "inverse_block"])
@pytest.mark.parametrize("roll", ["roll", "still"])
@pytest.mark.parametrize("case", ["14x14_127", "14x14_147", "14x14_49", "16x16_192", "8x12_60"])
def test_rolled_blocks_from_their_draws(golden: Path, kind: str, roll: str, case: str) -> None:
    found = load(golden, "capi_block")
    draws = found[f"{kind}/{roll}/{case}/draws"].double()
    side, _, hidden = case.partition("_")
    rows, columns = (int(v) for v in side.split("x"))
    cells = int(hidden) if kind == "block" else rows * columns - int(hidden)
    height, width = rolled.sides((rows, columns), cells, draws[:, 0])
    places = torch.zeros(len(draws), 4, dtype=torch.long)
    places[:, : draws.shape[1] - 1] = draws[:, 1:].long()
    block = rolled.lay((rows, columns), cells, width, places)
    mask = block if kind == "block" else ~block
    assert torch.equal(mask.view(-1, rows, columns), found[f"{kind}/{roll}/{case}/mask"])
    assert (height * width >= cells).all()


def test_the_roll_makes_every_place_alike() -> None:
    where = drawn("rolled", 4000, order="inverse").float().mean(0).view(14, 14)
    assert (where.max() - where.min()).item() < 0.06
    still = drawn("rolled", 4000, order="inverse", roll=False).float().mean(0).view(14, 14)
    assert still[0].mean() > 1.3 * still[4:10, 4:10].mean()


def test_a_still_block_is_a_rectangle_less_a_piece_of_its_last_row() -> None:
    block = drawn("rolled", 50, order="block", roll=False, ratio=0.3).view(-1, 14, 14)
    for one in block:
        rows = one.any(1).nonzero().flatten()
        widths = one[rows].sum(1)
        assert (rows.diff() == 1).all()
        assert (widths[:-1] == widths[0]).all()
        assert 0 < widths[-1] <= widths[0]
    seen = ~drawn("rolled", 5, order="inverse", ratio=0.75)
    assert torch.equal(seen, drawn("rolled", 5, order="block", ratio=0.25))


def test_a_blocks_row_and_column_have_nothing_to_do_with_each_other() -> None:
    """One draw for both passed every test: blocks lay along the diagonal."""
    block = drawn("rolled", 4000, order="block", roll=False, ratio=0.1).view(-1, 14, 14)
    top = block.any(2).float().argmax(1).float()
    left = block.any(1).float().argmax(1).float()
    assert abs(torch.corrcoef(torch.stack([top, left]))[0, 1]) < 0.05
    for first, side in ((top, block.any(2).sum(1)), (left, block.any(1).sum(1))):
        assert first.min() == 0
        assert (first + side).max() == 14, "the last row and column are reached"
    moved = drawn("rolled", 4000, order="block", ratio=0.1).view(-1, 14, 14).float().mean(0)
    assert moved.max() < 1.35 * moved.min()


@pytest.mark.parametrize("grid", [(14, 2), (2, 14), (1, 9), (9, 1), (3, 3)])
def test_multiblocks_blocks_leave_a_row_and_a_column_on_any_grid(grid: tuple[int, int]) -> None:
    height, width = multiblock.sides(grid, torch.rand(500, generator=rng()))
    for side, whole in ((height, grid[0]), (width, grid[1])):
        assert side.min() >= 1
        assert side.max() <= max(1, whole - 1)


def test_multiblock_sizes(golden: Path) -> None:
    found = load(golden, "ijepa_multiblock")
    height, width = multiblock.sides((14, 14), found["uniform"])
    assert torch.equal(torch.stack([height, width], 1).long(), found["target_size"])


def test_multiblock_as_published_never_reaches_the_last_row(golden: Path) -> None:
    size, places = torch.rand(3000, generator=rng()), torch.rand(3000, 4, 2, generator=rng(1))
    dead = multiblock.lay((14, 14), size, places, dead=True)
    where = dead.float().mean(0).view(14, 14)
    assert where[-1].max() == 0
    assert where[:, -1].max() == 0
    stored = load(golden, "ijepa_multiblock")
    union = stored["target_0"] | stored["target_1"] | stored["target_2"] | stored["target_3"]
    assert not union.view(-1, 14, 14)[:, -1].any()
    assert dead.sum(1).float().mean().item() == pytest.approx(87, abs=1.5)
    even_where = multiblock.lay((14, 14), size, places, dead=False).float().mean(0).view(14, 14)
    assert even_where[-1].mean() == pytest.approx(even_where[0].mean().item(), abs=0.03)


def test_multiblock_hides_the_blocks_before_anything_else() -> None:
    inp, strategy = look(200), masks.build({"name": "multiblock", "ratio": 0.8})
    union = multiblock.lay((14, 14), *_multiblock_draws(200), dead=False)
    mask = strategy(inp, rng())
    assert (mask | ~union).all()
    fewer = masks.build({"name": "multiblock", "ratio": 0.1})(inp, rng())
    assert (union | ~fewer).all()


def test_multiblock_with_its_own_counts() -> None:
    """As many as the blocks cover where tokens are replaced; refused where they are dropped."""
    own = masks.build({"name": "multiblock", "counts": "own"})
    share = torch.full((400,), 0.3)
    share[::4] = 0
    inp = look(400, amount=Amount(share=share, again=0.0))
    found = own(inp, rng())
    union = multiblock.lay((14, 14), *_multiblock_draws(400), dead=False)
    assert torch.equal(found[share > 0], union[share > 0])
    assert not found[share == 0].any()
    assert len(set(found.sum(1).tolist())) > 20
    with pytest.raises(UserError, match=r"counts is own.*distillation"):
        own.count(196)
    with pytest.raises(UserError, match="counts is own"):
        read_config("mae_vit_base_16", ["mask.name=multiblock", "mask.counts=own"])
    recipe = read_recipe("attmask_vit_small_16_100", ["mask.name=multiblock", "mask.counts=own"])
    assert recipe.mask["counts"] == "own"


def _multiblock_draws(count: int) -> tuple[Tensor, Tensor]:
    dice, inp = rng(), look(count)
    return inp.uniform(dice, 1)[:, 0], inp.uniform(dice, 4, 2)


@pytest.mark.parametrize("side", [14, 16])
def test_even_masks_show_one_corner_of_each_cell(golden: Path, side: int) -> None:
    found, inp = load(golden, "ummae"), look(3000, grid=(side, side))
    cells = (~masks.build({"name": "even"})(inp, rng())).view(3000, side // 2, 2, side // 2, 2)
    assert (cells.sum((2, 4)) == found[f"{side}/visible_per_cell"]).all()
    assert even.pool(side * side // 4) == found[f"{side}/pool"]
    corners = cells.sum((1, 3)).flatten(1).float()
    torch.testing.assert_close(
        corners.mean(0).double(), found[f"{side}/corner_counts_mean"], atol=0.2, rtol=0
    )
    # independent corners would vary twice as much: 9.2 and 12
    torch.testing.assert_close(
        corners.var(0).double(), found[f"{side}/corner_counts_var"], atol=0.6, rtol=0
    )


def test_even_masks_need_even_grids() -> None:
    with pytest.raises(UserError, match="5 x 4 patches does not divide into cells of 2 x 2"):
        masks.build({"name": "even"})(look(2, grid=(5, 4)), rng())


def test_salience_by_hand() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    weights = (tokens[0] @ tokens[0].T).softmax(1)
    total = weights.sum(0)
    expected = (total - total.min()) / (total.max() - total.min())
    torch.testing.assert_close(outgoing(tokens)[0], expected)
    assert outgoing(tokens)[0].argmax() == 2


def test_salience_follows_patches_and_counts_copies() -> None:
    tokens = 0.5 * torch.randn(2, 9, 6, generator=rng())
    order = torch.randperm(9, generator=rng(1))
    torch.testing.assert_close(outgoing(tokens[:, order]), outgoing(tokens)[:, order])
    raw = (tokens @ tokens.transpose(1, 2)).softmax(2).sum(1)
    twice = torch.cat([tokens, tokens[:, :1]], dim=1)
    doubled = (twice @ twice.transpose(1, 2)).softmax(2).sum(1)
    assert (doubled[:, 0] / doubled.sum(1) > 0).all()
    torch.testing.assert_close(doubled[:, 0], doubled[:, -1])
    assert raw.shape == (2, 9)


@pytest.mark.parametrize(("noise", "overlap"), [(0.0, 1.0), (1e6, 0.75)])
def test_noise_leads_from_salience_to_random(noise: float, overlap: float) -> None:
    salience = torch.rand(400, 196, generator=rng(3))
    mask = masks.build({"name": "salience", "noise": noise})(look(400, salience=salience), rng())
    hardest = hide_largest(salience, 147)
    share = (mask & hardest).sum() / hardest.sum()
    assert share.item() == pytest.approx(overlap, abs=0.01)


def test_the_harder_of_two_draws_is_kept() -> None:
    weights = torch.linspace(0, 1, 196)
    inp = look(300, trial=lambda mask: (mask * weights).sum(1))
    dice = rng()
    tries = [hide_largest(inp.uniform(dice, 196), 147) for _ in range(2)]
    losses = torch.stack([(mask * weights).sum(1) for mask in tries])
    mask = masks.build({"name": "harder"})(inp, rng())
    torch.testing.assert_close((mask * weights).sum(1), losses.max(0).values)
    one = masks.build({"name": "harder", "draws": 1})
    assert torch.equal(one(inp, rng()), tries[0])
    assert one.idle(inp)


def test_contrast_hides_textured_patches_and_leaves_flat_ones() -> None:
    images = torch.zeros(1, 3, 4 * 14, 4 * 14)
    images[:, :, :16, :16] = torch.randn(1, 3, 16, 16, generator=rng())
    strategy = masks.build({"name": "contrast", "alpha_start": 1.0, "alpha_end": 1.0, "ratio": 0.1})
    mask = strategy(look(1, images=images), rng()).view(14, 14)
    assert mask[:4, :4].all()
    assert mask.sum() == 20


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "colour", "width": 2.0, "wide": 1.0}, "wide is 1, expected more than width, 2"),
        ({"name": "colour", "order": "red", "wide": 3.0}, "red noise has one filter only"),
        ({"name": "rolled", "aspect": 0.0}, "aspect is 0"),
        ({"name": "multiblock", "blocks": 0}, "blocks is 0"),
        ({"name": "salience", "noise": -1.0}, "noise is -1"),
        ({"name": "harder", "draws": 0}, "draws is 0"),
    ],
)
def test_settings_that_make_no_mask_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masks.build(fields)
