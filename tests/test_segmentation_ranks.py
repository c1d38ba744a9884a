"""Two processes, as two nodes of one process each: the same results, and nobody waits for ever."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mimbench.sample import generate
from mimbench.scores.confusion import PARTS, Confusion
from mimbench.scores.outcomes import read_outcomes
from tests.support.segmentation_runs import WEIGHTS, linear_config
from transfer.segmentation import linear
from transfer.segmentation.again import again

ROOT = Path(__file__).parents[1]


class Pair(NamedTuple):
    """What two processes left, and where."""

    ade: Path
    out: Path
    found: list[dict[str, Any]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two torchrun agents on this machine, each a node with one process."""
    root = tmp_path_factory.mktemp("pair")
    generate(root / "sample", train_per_class=1, val_per_class=1, train_scenes=10, val_scenes=3)
    ade, out, port = root / "sample" / "ade", root / "out", str(free_port())
    out.mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", node,
                "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port,
                "-m", "tests.support.segmentation_runs", str(ade), str(out),
            ],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for node in ("0", "1")
    ]  # fmt: skip
    said = [node.communicate(timeout=600)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    found = [json.loads((out / f"found-{rank}.json").read_text()) for rank in range(2)]
    return Pair(ade, out, found)


@pytest.mark.timeout(900)
def test_both_processes_hold_the_same_model_and_scores(pair: Pair) -> None:
    first, second = pair.found
    assert len(first["digests"]) == 3
    assert all(first[key] == second[key] for key in ("digests", "linear", "upernet"))
    for task in ("linear", "upernet"):
        notes = first["notes"][task]
        parts = (notes["processes"], notes["micro_batch"], notes["micro_steps"])
        assert parts == (2, 2, 1)  # the effective batch is 4 as in one process
    assert "local: 2 of the effective batch's 4 images" in notes["batch_norm"]


def test_two_processes_give_what_one_gives(pair: Pair, tmp_path: Path) -> None:
    """Without batch norm and dropout the number of processes changes nothing but rounding."""
    metrics = linear.run(WEIGHTS, linear_config(pair.ade), tmp_path).metrics
    assert pair.found[0]["linear"]["miou"] == pytest.approx(metrics["miou"], abs=0.05)
    one, two = (load_file(f / "model.safetensors") for f in (tmp_path, pair.out / "linear"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)


def test_upernet_trains_and_the_gathered_test_is_that_of_one_process(pair: Pair) -> None:
    run, found = pair.out / "upernet", pair.found[0]["upernet"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    repeated = again(run, device="cpu")
    assert repeated.metrics == found
    gathered, [alone] = read_outcomes(pair.out / "outcomes.0.npz", Confusion), repeated.outcomes
    assert isinstance(alone, Confusion)
    assert len(gathered.images) == len(set(gathered.images)) == 3
    order = [gathered.images.index(name) for name in alone.images]
    for part in PARTS:
        assert np.array_equal(getattr(gathered, part)[order], getattr(alone, part))


def test_all_leave_after_the_same_step_and_go_on_exactly(pair: Pair) -> None:
    """The signal reached the second process only, which writes nothing."""
    assert pair.found[0]["left_at"] == 4
    _, whole, resumed = pair.found[0]["digests"]
    assert resumed == whole


def test_nodes_without_a_common_folder_are_refused(pair: Pair) -> None:
    for found in pair.found:
        assert "the processes see different files" in found["refusal"]
        assert "a folder that all of them share" in found["refusal"]
