"""The baselines' acceptance list: counts and distributions of MAE, SimMIM, BEiT and iBOT masks."""

import math

import pytest
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from pretrain.masks import Amount, MaskInput, MaskStrategy
from pretrain.masks.block import LONGEST
from pretrain.masks.block import Strategy as Block
from pretrain.masks.grid import Strategy as Grid
from pretrain.masks.uniform import Strategy as Uniform

MANY = 4_000


def draw(
    strategy: MaskStrategy,
    batch: int = MANY,
    seed: int = 0,
    grid: tuple[int, int] = (14, 14),
    amount: Amount | None = None,
) -> Tensor:
    inp = MaskInput(batch=batch, grid=grid, device=torch.device("cpu"), amount=amount)
    return strategy(inp, torch.Generator().manual_seed(seed))


def rectangles(batch: int = MANY, budget: float = 75, seed: int = 0) -> Tensor:
    draws = torch.rand(batch, LONGEST, 4, generator=torch.Generator().manual_seed(seed))
    return Block().lay((14, 14), torch.full((batch,), float(budget)), draws)


def test_counts() -> None:
    assert Uniform().count(196) == 147
    assert Grid().count(196) == 120
    assert Grid().count(144) == 22 * 4
    assert Block().count(196) == 75


def test_simmim_hides_whole_cells() -> None:
    mask = draw(Grid(), 50).reshape(50, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).reshape(50, 49, 4)
    share = mask.float().mean(-1)
    assert set(share.unique().tolist()) == {0.0, 1.0}
    assert share.sum(1).tolist() == [30.0] * 50


def test_mae_and_simmim_hide_every_place_equally_often() -> None:
    # each count is binomial: the sum of squared standard scores is about chi-square
    for strategy, ratio, places in ((Uniform(), 0.75, 196), (Grid(), 30 / 49, 49)):
        rate = draw(strategy).float().mean(0)
        score = (rate - ratio) / math.sqrt(ratio * (1 - ratio) / MANY)
        square = score.square().sum().item() * places / 196
        # sampling without replacement makes it a little narrower than places - 1 degrees of freedom
        assert square < places + 5 * math.sqrt(2 * places)


def test_beit_spends_at_most_its_budget() -> None:
    count = rectangles().sum(1).float()
    assert count.max() == 75
    assert abs(count.mean() - 74.5) < 0.2
    assert abs((count == 75).float().mean() - 0.67) < 0.04
    assert count.min() >= 55


def test_beit_hides_the_centre_more_than_the_border() -> None:
    rate = rectangles().float().mean(0).reshape(14, 14)
    border = torch.cat([rate[0], rate[-1], rate[1:-1, 0], rate[1:-1, -1]])
    corners = rate[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert abs(rate[6:8, 6:8].mean() - 0.72) < 0.04
    assert abs(border.mean() - 0.13) < 0.03
    assert abs(corners.mean() - 0.04) < 0.02


def test_topping_up_keeps_every_rectangle() -> None:
    inp = MaskInput(batch=50, grid=(14, 14), device=torch.device("cpu"))
    full = Block()(inp, torch.Generator().manual_seed(4))
    draws = torch.rand(50, LONGEST, 4, generator=torch.Generator().manual_seed(4))
    laid = Block().lay((14, 14), torch.full((50,), 75.0), draws)
    assert (full & laid).sum() == laid.sum()
    assert full.sum(1).tolist() == [75] * 50


def test_first_rectangles_have_the_drawn_shape() -> None:
    """With a budget that one rectangle fills, what is laid is that rectangle."""
    draws = torch.rand(2_000, 1, 4, generator=torch.Generator().manual_seed(1))
    laid = Block().lay((14, 14), torch.full((2_000,), 75.0), draws).reshape(-1, 14, 14)
    laid = laid[laid.any(2).any(1)]
    height, width = laid.any(2).sum(1), laid.any(1).sum(1)
    assert len(laid) > 1_500
    assert torch.equal(height * width, laid.sum((1, 2)))
    # rounding a side moves area and aspect a little
    assert (height * width).min() >= 12
    aspect = height / width
    assert aspect.min() >= 0.25
    assert aspect.max() <= 4
    assert (height < 14).all()
    assert (width < 14).all()


def test_longest_is_enough() -> None:
    """More draws would change nothing: every image is done before the last."""
    draws = torch.rand(MANY, 2 * LONGEST, 4, generator=torch.Generator().manual_seed(2))
    for budget in (20.0, 75.0, 98.0, 147.0):
        spend = torch.full((MANY,), budget)
        short = Block().lay((14, 14), spend, draws[:, :LONGEST])
        assert (short == Block().lay((14, 14), spend, draws)).all(1).float().mean() > 0.999


def test_ibot_budgets_need_not_be_whole() -> None:
    share = torch.rand(MANY, generator=torch.Generator().manual_seed(3)) * 0.4 + 0.1
    count = draw(Block(), amount=Amount(share=share, again=0.3)).sum(1)
    short = share * 196 - count
    assert short.min() >= 0
    assert abs(short.mean() - 1.3) < 0.5
    rand = draw(Uniform(), amount=Amount(share=share, again=0.3)).sum(1)
    assert torch.equal(rand, (share * 196 + 1e-4).long())


def test_impossible_grids_and_ratios_say_so() -> None:
    with pytest.raises(UserError, match="does not divide into cells of 2 x 2; set mask.cell"):
        draw(Grid(), 2, grid=(4, 7))
    with pytest.raises(UserError, match="49 patches do not divide into cells"):
        Grid().count(49)
    with pytest.raises(UserError, match="hides all 4 cells"):
        Grid(ratio=0.9).count(16)
    for strategy in (Block(ratio=1.0), Uniform(ratio=0.0)):
        with pytest.raises(UserError, match="mask ratio"):
            draw(strategy, 2)
    with pytest.raises(ValueError, match="ratio between 0 and 1"):
        Grid(ratio=1.0)
