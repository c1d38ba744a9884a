"""Sizes and groups: the recipe decides the mathematics, the machine only the pieces."""

import pytest
import torch
from torch import nn

from mimbench.system.errors import UserError
from mimbench.training.optim import BatchPlan, Lars, Schedule, plan_batch, scaled_lr, set_lr


@pytest.mark.parametrize(
    ("effective", "world", "at_most", "plan"),
    [
        (1024, 1, 1024, BatchPlan(per_process=1024, micro_steps=1)),
        (1024, 8, 64, BatchPlan(per_process=64, micro_steps=2)),
        (384, 1, 100, BatchPlan(per_process=96, micro_steps=4)),
        (7, 1, 3, BatchPlan(per_process=1, micro_steps=7)),
    ],
)
def test_micro_batches_multiply_to_the_effective_batch(
    effective: int, world: int, at_most: int, plan: BatchPlan
) -> None:
    assert plan_batch(effective, world=world, at_most=at_most) == plan
    assert plan.per_process * plan.micro_steps * world == effective


def test_an_uneven_split_is_refused() -> None:
    with pytest.raises(UserError, match="batch of 10 cannot be split evenly over 4"):
        plan_batch(10, world=4, at_most=8)


def test_schedule_starts_at_zero_peaks_and_ends_at_the_floor() -> None:
    schedule = Schedule(peak=scaled_lr(1.5e-4, 4096), epochs=10, warmup=2, floor=1e-6)
    assert schedule(0) == 0
    assert schedule(2) == pytest.approx(2.4e-3)
    assert schedule(10) == schedule(11) == pytest.approx(1e-6)


def test_set_lr_respects_each_groups_scale() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr_scale": s} for s in (0.5, 1.0)]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    set_lr(optimizer, 0.2)
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_lars_leaves_vectors_unscaled_and_takes_no_closure() -> None:
    vector = nn.Parameter(torch.full((3,), 10.0))
    vector.grad = torch.ones(3)
    optimizer = Lars([vector], lr=0.1, weight_decay=0.5)
    optimizer.step()
    torch.testing.assert_close(vector.data, torch.full((3,), 9.9))
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: None)  # pyright: ignore[reportArgumentType]
