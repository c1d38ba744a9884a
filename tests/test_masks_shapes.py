"""The laboratory's further columns: by hand, and random masks at the values that the page names."""

import math

import pytest
import torch

from pretrain import masks
from pretrain.viewing.mask_shapes import (
    autocorrelation,
    border_bias,
    count_entropy,
    distance_to_sight,
    knowledge,
    mutual_information,
    repetition,
    shape_of,
    visible_parts,
)
from tests.support.tiny_pretrain import look, rng

GRID = (14, 14)


def draws(name: str, count: int = 500, **fields: object) -> torch.Tensor:
    """Return two draws of masks on a 14 x 14 grid."""
    strategy = masks.build({"name": name, "ratio": 0.75, **fields})
    return torch.stack([strategy(look(count), rng(seed)) for seed in (0, 1)])


def test_random_masks_give_the_random_column() -> None:
    objects = (torch.rand(500, 196, generator=rng(5)) > 0.7).float()
    shape = shape_of(draws("random"), GRID, objects=objects)
    assert shape.count_entropy == 0
    assert shape.border == pytest.approx(1, abs=0.01)
    assert shape.dead == 0
    assert shape.grain == pytest.approx(0.63, abs=0.01)
    assert shape.evenness == pytest.approx(0, abs=0.02)
    assert shape.distance == pytest.approx(1.25, abs=0.01)
    assert shape.parts == pytest.approx(27, abs=0.5)
    assert shape.repetition == pytest.approx(1, abs=0.01)
    assert shape.information == pytest.approx(0, abs=1e-4)
    assert shape.place == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "fields", "border", "grain", "distance", "parts"),
    [
        ("even", {}, 1.0, 0.54, 1.08, 39),
        ("rolled", {"order": "inverse"}, 1.01, 3.22, 3.15, 2.1),
        ("rolled", {"order": "inverse", "roll": False}, 1.82, 3.74, 3.44, 1.0),
        ("rolled", {"order": "block"}, 1.0, 2.86, 3.13, 1.2),
        ("colour", {"order": "green"}, 1.0, 1.12, 1.59, 8.4),
        ("colour", {"order": "red"}, 0.96, 2.43, 2.94, 2.6),
        ("colour", {"order": "blue"}, 1.0, 0.58, 1.17, 33),
        ("block", {}, 0.44, 1.99, 2.80, 3.1),
    ],
)
def test_columns_of_other_strategies(
    name: str, fields: dict[str, object], border: float, grain: float, distance: float, parts: float
) -> None:
    """The values that were measured independently, when the strategies were chosen."""
    shape = shape_of(draws(name, 600, **fields), GRID)
    assert shape.border == pytest.approx(border, abs=0.06)
    assert shape.grain == pytest.approx(grain, rel=0.06)
    assert shape.distance == pytest.approx(distance, rel=0.03)
    assert shape.parts == pytest.approx(parts, rel=0.06)


def test_counts() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[0, :1] = mask[1, :2] = mask[2, :3] = mask[3, :4] = True
    assert count_entropy(mask) == pytest.approx(2)
    assert count_entropy(mask[:1]) == 0


def test_a_period_of_two_has_an_autocorrelation_of_minus_one() -> None:
    places = torch.arange(8)
    board = (places.view(-1, 1) + places) % 2 == 0
    found = autocorrelation(torch.stack([board, ~board]))
    assert found[1] == pytest.approx(-1)
    # from 1 at lag 0 to -1 at lag 1, in a straight line
    assert found[0] == pytest.approx((1 - 1 / math.e) / 2)
    assert autocorrelation(torch.stack([board, board])) == (0.0, 0.0)


def test_gaps_and_parts_by_hand() -> None:
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 3, 3] = mask[0, 3, 2] = False
    assert visible_parts(mask) == 2
    mask[0, 1, 1] = False
    # diagonal neighbours do not touch
    assert visible_parts(mask) == 3
    row = torch.tensor([[False, True, True, True]])
    assert distance_to_sight(row, (1, 4)) == pytest.approx(2)
    winding = torch.ones(1, 5, 5, dtype=torch.bool)
    for r, c in ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (3, 0), (4, 0), (4, 4)):
        winding[0, r, c] = False
    assert visible_parts(winding) == 2


def test_a_hidden_border() -> None:
    where = torch.full((8, 8), 0.2)
    where[0] = where[-1] = 0.6
    where[:, 0] = where[:, -1] = 0.6
    assert border_bias(where) == pytest.approx(3)


def test_masks_without_dice_repeat_themselves() -> None:
    difficulty = torch.randn(500, 196, generator=rng(2))
    strategy = masks.build({"name": "hard", "alpha_start": 1.0, "alpha_end": 1.0})
    fixed = torch.stack([strategy(look(500, difficulty), rng(s)) for s in (0, 1)])
    found = repetition(fixed)
    assert found is not None
    # 0.6 is the overlap of two random masks of 0.75
    assert found == pytest.approx(1 / 0.6, abs=0.02)
    assert repetition(fixed[:1]) is None


def test_a_mask_that_is_the_object_tells_all_of_it() -> None:
    inside = torch.rand(400, 196, generator=rng(3)) < 0.25
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert mutual_information(inside.float(), inside) == pytest.approx(entropy, abs=0.01)
    information, place = knowledge(inside.unsqueeze(0), inside.float())
    assert information == pytest.approx(entropy, abs=0.01)
    assert place == pytest.approx(0, abs=0.01)
    # what is avoided tells as much as what is sought out
    avoided, _ = knowledge(~inside.unsqueeze(0), inside.float())
    assert avoided == pytest.approx(information)


def test_a_prior_for_the_middle_is_no_information_about_an_image() -> None:
    middle = torch.zeros(14, 14)
    middle[4:10, 4:10] = 1
    inside = (torch.rand(600, 196, generator=rng(4)) < 0.1 + 0.6 * middle.flatten()).float()
    information, place = knowledge((middle.flatten() > 0).expand(2, 600, -1), inside)
    assert information == pytest.approx(0, abs=1e-3)
    assert place is not None
    assert place > 0.15
    nothing = torch.full((600, 196), float("nan"))
    assert knowledge(draws("random", 600), nothing) == (None, None)
