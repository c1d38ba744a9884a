"""Accumulation on a toy, precision, and what goes wrong in training: each with its advice."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")

from mimbench.system.errors import UserError
from mimbench.system.seeds import sequence_seed
from mimbench.vit.weights import VitWeights, random_weights
from tests.support.detection_run import SPEC, final, same, small
from transfer.detection.console import advice
from transfer.detection.loop import Accumulator
from transfer.detection.train import save_period
from transfer.detection.vitdet import run


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "coco"


@pytest.fixture(scope="module")
def weights() -> VitWeights:
    return random_weights(SPEC, 0)


class Toy(nn.Module):
    """A linear regression that speaks detectron2's language: a batch in, a dict of losses out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)

    def forward(self, batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        x = torch.stack([item["x"] for item in batch])
        y = torch.stack([item["y"] for item in batch])
        error = self.linear(x) - y
        return {"square": error.square().mean(), "absolute": error.abs().mean()}


def toy_batches(size: int) -> Iterator[list[dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(1)
    while True:
        yield [
            {"x": torch.randn(5, generator=g), "y": torch.randn(3, generator=g)}
            for _ in range(size)
        ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accumulating_64_pictures_is_one_batch_of_64(precision: Any) -> None:
    ends = []
    for size, micro in ((64, 1), (16, 4), (1, 64)):
        model = Toy()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        trainer = Accumulator(
            model, toy_batches(size), optimizer, micro_steps=micro, precision=precision, seed=None
        )
        trainer.train(0, 8)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert not same(ends[0], Toy().state_dict(), 1e-3)
    assert same(ends[0], ends[1], tolerance)
    assert same(ends[0], ends[2], tolerance)


def test_bf16_trains_and_fp16_needs_a_gpu(coco: Path, weights: VitWeights, tmp_path: Path) -> None:
    run(weights, small(coco, precision="bf16", images=4), tmp_path)
    assert all(tensor.isfinite().all() for tensor in final(tmp_path).values())
    with pytest.raises(UserError, match="precision fp16 needs a CUDA GPU"):
        run(weights, small(coco, precision="fp16"), tmp_path / "x")


def test_missing_memory_becomes_advice(
    coco: Path, weights: VitWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Accumulator) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Accumulator, "run_step", full)
    with pytest.raises(UserError, match=r"(?s)out of memory on cpu \(peak \d+\.\d GiB.*max_batch"):
        run(weights, small(coco), tmp_path)


def test_other_failures_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), advice(torch.device("cpu")):
        raise RuntimeError("shapes differ")
    with pytest.raises(UserError, match="out of memory"), advice(torch.device("cpu")):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def test_a_loss_that_is_no_number_stops_with_advice(
    coco: Path, weights: VitWeights, tmp_path: Path
) -> None:
    broken = replace(
        weights,
        tensors={**weights.tensors, "patch_embed.proj.bias": torch.full((24,), float("nan"))},
    )
    with pytest.raises(UserError, match=r"(?s)Inf/NaN.*weights saved last are still sound"):
        run(broken, small(coco), tmp_path)


def test_states_are_saved_as_officially_and_more_often_in_short_runs() -> None:
    assert [save_period(steps) for steps in (184_375, 88_750, 300, 4)] == [5000, 5000, 30, 1]


def test_seeds_of_positions_are_far_apart() -> None:
    seeds = {sequence_seed(seed, position) for seed in range(3) for position in range(200)}
    assert len(seeds) == 600
