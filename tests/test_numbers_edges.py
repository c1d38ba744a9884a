"""Small rules that no other test looked at: each was found by a machine-made fault that survived."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mimbench.data.lists import ImageList, joined
from mimbench.features.logistic.solver import _search_line
from mimbench.scores.shares import mean_share
from mimbench.system.errors import UserError
from mimbench.system.seeds import derive_seed
from mimbench.vit.relative import TOKEN_ROWS, resize_bias
from pretrain.masks import MaskInput, harder
from tests.support import tiny_distill
from transfer.detection.data import AnnotationFaults
from transfer.detection.order import POSITION, EndlessSampler, Positioned
from transfer.segmentation.data import _class_names


@pytest.mark.parametrize("grid", [(2, 3), (3, 2)])
def test_a_relative_table_of_a_wide_grid_is_refused(grid: tuple[int, int]) -> None:
    rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) + TOKEN_ROWS
    with pytest.raises(UserError, match="only tables of square grids can"):
        resize_bias(torch.zeros(rows, 2), grid=grid, to=(4, 4))


def test_two_classes_are_enough_and_one_is_not(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("road\n\n sky \n")
    assert _class_names(tmp_path, "names.txt") == (("road", "sky"), ())
    for wrong in ("road\n", "road\nroad\n"):
        names.write_text(wrong)
        with pytest.raises(UserError, match="two or more different classes"):
            _class_names(tmp_path, "names.txt")


def test_a_torn_row_of_the_class_table_is_refused(tmp_path: Path) -> None:
    rows = [f"{i}\t{1 / 150:.4f}\t10\t5\tthing {i}, other" for i in range(1, 151)]
    table = tmp_path / "objectInfo150.txt"
    table.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    found, shares = _class_names(tmp_path, "")
    assert (found[0], found[-1], len(shares)) == ("thing 1", "thing 150", 150)
    rows[70] = rows[70].rsplit("\t", 1)[0]
    table.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    with pytest.raises(UserError, match="150 classes in five columns"):
        _class_names(tmp_path, "")


def test_annotation_faults_are_counted_one_by_one() -> None:
    faults = AnnotationFaults()
    for i in range(5):
        faults.add("boxes outside", i)
    faults.add("empty boxes", "x")
    assert faults.lines() == [
        "5 boxes outside (for example 0, 1, 2)",
        "1 empty boxes (for example x)",
    ]


def test_joined_lists_open_each_image_from_its_own_source() -> None:
    def source(shade: int, count: int) -> ImageList:
        return ImageList(
            names=tuple(f"{shade}/{i}.png" for i in range(count)),
            labels=np.zeros(count, dtype=np.int64),
            classes=("one", "two"),
            stamps=("",) * count,
            where=str(shade),
            opener=lambda index: Image.new("L", (1, 1), shade + index),
        )

    both = joined(source(10, 2), replace(source(100, 3), where="second"))
    assert [both.open(i).getpixel((0, 0)) for i in range(5)] == [10, 11, 100, 101, 102]


def test_positions_go_on_where_a_run_stopped() -> None:
    def read(record: Any) -> dict[str, Any]:
        return {**record, "draw": np.random.random()}  # noqa: NPY002 -- what detectron2 draws from

    pictures: Any = Positioned([{"id": i} for i in range(4)], read, seed=3)  # pyright: ignore[reportArgumentType]
    assert len(pictures) == 4
    assert pictures[7, 2][POSITION] == 7
    assert pictures[7, 2]["draw"] == pictures[7, 2]["draw"] != pictures[8, 2]["draw"]
    whole, rest = EndlessSampler(4, seed=0), EndlessSampler(4, seed=0)
    rest.start = 6
    steps = iter(whole)
    order = [next(steps) for _ in range(12)]
    assert sorted(index for _, index in order[:4]) == [0, 1, 2, 3]
    steps = iter(rest)
    assert [next(steps) for _ in range(6)] == order[6:]


def test_a_step_that_went_too_far_returns_to_the_parabolas_least_point() -> None:
    """One step back is enough on a parabola: least at 0.3 of the direction, within the clamp."""

    def objective(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        del rows
        return points.square().sum((1, 2)) / 2, points

    start = torch.ones(1, 1, 1, dtype=torch.float64)
    loss, gradient = objective(start, torch.arange(1))
    found, value, _ = _search_line(objective, start, loss, gradient, -start / 0.3)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, torch.zeros_like(found))
    torch.testing.assert_close(value, torch.zeros_like(value))


def test_shares_between_nought_and_one_have_no_wilson_interval() -> None:
    """Wilson's is for right and wrong: a third of an object found is neither."""
    per_image = np.array([0.0, 1.0, 0.5, 0.5] * 25)
    found = mean_share("recall", tuple(map(str, range(100))), per_image).interval()
    right = mean_share("top1", tuple(map(str, range(100))), per_image.round()).interval()
    assert found.half == pytest.approx(100 * 1.96 * per_image.std() / 10, rel=0.1)
    assert right.half > 1.1 * found.half


def test_without_a_trial_the_hardest_of_several_masks_is_the_first() -> None:
    inp = MaskInput(batch=3, grid=(4, 4), device=torch.device("cpu"))
    several, one = (
        harder.Strategy(draws=draws)(inp, torch.Generator().manual_seed(0)) for draws in (3, 1)
    )
    assert torch.equal(several, one)


def test_distillations_draws_follow_seed_step_and_purpose_in_this_order() -> None:
    """A run that goes on under another order draws other masks."""
    made = tiny_distill.learner("training.seed=7")
    generator = made._seeded(tiny_distill.at(20), 1, 0)
    assert generator.initial_seed() == derive_seed(7, 20, 1, 0)
