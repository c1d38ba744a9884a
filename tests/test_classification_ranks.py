"""Two processes train a probe and a fine-tune as one does, agree when memory runs out, survive kills."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.system.memory import Halving
from mimbench.system.runtime import process_group
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.processes import as_two_ranks, clean_processes, free_port
from transfer.classification import finetune, linear
from transfer.classification.finetune import WORD
from transfer.classification.tuner import Config, FineTune

PLAIN = {
    "image_size": 32,
    "resize": None,
    "batch": 16,
    "epochs": 2,
    "warmup": 0,
    "machine": {"device": "cpu", "workers": 0, "max_batch": 8},
}
# drop path and mixing draw random numbers in each process: without them nothing depends on how many
STILL = {
    "lr": 0.02,
    "layer_decay": 0.9,
    "drop_path": 0.0,
    "precision": "fp32",
    "augment": {
        "randaugment": None, "scale": [0.9, 1.0], "flip": 0.0, "erase": 0.0,
        "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.1,
    },
}  # fmt: skip


@pytest.fixture
def data(painted_images: Callable[..., Path], tmp_path: Path) -> Path:
    return painted_images(tmp_path / "data", train=8, val=5)


@pytest.fixture
def weights(small_spec: VitSpec) -> VitWeights:
    return random_weights(small_spec, 0)


def tuning(data: Path, **changes: Any) -> Config:
    return from_mapping(Config, {**PLAIN, **STILL, "data": str(data), **changes})


def probing(data: Path, **changes: Any) -> linear.Config:
    own = {
        "norm_batch": 8, "learning_rates": [1.0, 100.0], "choices": ["avg", "cls4"],
        "crop": {"kind": "byol", "scale": [0.9, 1.0], "flip": 0.0},
    }  # fmt: skip
    return from_mapping(linear.Config, {**PLAIN, **own, "data": str(data), **changes})


def _probe(weights: VitWeights, config: Any, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ["MIMBENCH_CACHE"] = str(out.parent / "cache")
    linear.run(weights, config, out)


def _tune(weights: VitWeights, config: Any, out: Path, sleep_at: int = -1, tight: int = 0) -> None:
    """Fine-tune; sleep before a step of epoch `sleep_at`; rank 1 holds `tight` images at once."""
    torch.set_num_threads(1)
    real = FineTune.loss

    def loss(self: FineTune, model: Any, batch: Any, at: Any):
        if at.epoch == sleep_at:
            time.sleep(600)
        if tight and self.ranks.rank == 1 and len(batch.indices) > tight:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, batch, at)

    FineTune.loss = loss
    notes = finetune.run(weights, config, out).notes
    if os.environ["RANK"] == "0":
        write_json(out / "notes.json", dict(notes))


def _tune_as_rank(rank: int, port: int, *arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _tune(*arguments)


def states(*folders: Path) -> list[dict[str, Any]]:
    return [torch.load(f / "checkpoints/last.pt", weights_only=True) for f in folders]


def assert_same_run(one: Path, two: Path) -> None:
    first, second = states(one, two)
    assert first["step"] == second["step"]
    assert first["learner"]["history"] == second["learner"]["history"]
    for name, tensor in first["model"].items():
        torch.testing.assert_close(second["model"][name], tensor, rtol=1e-4, atol=1e-5)


def _probe_and_tune(weights: VitWeights, probe: Any, tune: Any, out: Path, tight: int) -> None:
    _probe(weights, probe, out / "probe")
    _tune(weights, tune, out / "tune", tight=tight)


def test_two_processes_do_what_one_does_and_halve_together(
    data: Path, weights: VitWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both tasks by the same two processes, which are slow to start; memory is short in the second."""
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path / "own"))
    probe, tune = probing(data), tuning(data, epochs=1)
    two, one = tmp_path / "two", tmp_path / "one"
    assert as_two_ranks(_probe_and_tune, weights, probe, tune, two, 2) == [0, 0]
    alone = linear.run(weights, probe, one / "probe").metrics
    assert_same_run(one / "probe", two / "probe")
    # batch norm's running statistics are those of all images, not of the first process's half
    [state] = states(two / "probe")
    assert state["model"]["norms.0.mean"].abs().max() > 0
    assert alone["top1"] == alone["top1_last"]
    notes = json.loads((two / "tune/notes.json").read_text())
    assert (notes["micro_batch"], notes["micro_steps"], notes["effective_batch"]) == (2, 4, 16)
    assert notes["memory_halved"] is True
    # the rehearsal leaves no trace
    roomy = replace(tune, machine=replace(tune.machine, max_batch=2))
    finetune.run(weights, roomy, one / "tune")
    assert_same_run(one / "tune", two / "tune")


def test_processes_that_would_change_batch_norm_are_refused(data: Path):
    linear.check_groups(probing(data), 2)
    with pytest.raises(UserError, match=r"over 8 images, but 4 processes see 4 .* that divides 2"):
        linear.check_groups(probing(data), 4)
    linear.check_groups(probing(data, batch_norm=False), 4)


def test_a_fine_tune_by_two_killed_after_an_epoch_is_that_by_one(
    data: Path, weights: VitWeights, tmp_path: Path
):
    settings, out, port = tuning(data), tmp_path / "two", free_port()
    killed = [
        clean_processes().Process(target=_tune_as_rank, args=(r, port, weights, settings, out, 1))
        for r in (0, 1)
    ]
    for process in killed:
        process.start()
    saved, deadline = out / "checkpoints/last.pt", time.monotonic() + 200
    while not saved.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in killed:
        process.kill()
        process.join()
    assert states(out)[0]["step"] == 2
    assert as_two_ranks(_tune, weights, settings, out) == [0, 0]
    one = finetune.run(weights, settings, tmp_path / "one").notes
    assert_same_run(tmp_path / "one", out)
    two = json.loads((out / "notes.json").read_text())
    assert (one["micro_batch"], one["micro_steps"]) == (8, 2)
    assert (two["micro_batch"], two["micro_steps"]) == (8, 1)


def _run_out_later(weights: VitWeights, config: Any, out: Path) -> None:
    with process_group("cpu") as ranks:
        room = Halving(size=8)
        with finetune.leaving_word(out, room, ranks):
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_running_out_later_leaves_word_for_the_next_start(
    data: Path, weights: VitWeights, tmp_path: Path
):
    with pytest.raises(UserError, match=r"process 0 ran out .* goes on with 4"):
        _run_out_later(weights, None, tmp_path)
    assert finetune.remembered(tmp_path) == 4
    assert json.loads((tmp_path / WORD).read_text()) == {"images": 4}
    assert finetune.remembered(tmp_path / "elsewhere") is None
