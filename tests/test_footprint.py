"""Room for a run, computed before it begins."""

import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.benchmarks.cells import Cell
from mimbench.suite.costs.footprint import check_room, free_memory_mb, gigabytes
from mimbench.suite.running.launch import make_slots
from mimbench.system.errors import UserError
from mimbench.system.runtime import usable_cores
from mimbench.vit.footprint import Footprint, frozen, stored_features, tokens, trained
from mimbench.vit.weights import VitSpec
from tests.support.light_cells import cell

SMI = """#!/bin/sh
[ "$*" = "--query-gpu=memory.free --format=csv,noheader,nounits -i 6" ] && echo 1234
"""

BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))


def of(out: Path, name: str, need: Footprint) -> Cell:
    return replace(cell(out, name), footprint=need)


def test_features_of_imagenet_take_what_their_shards_hold() -> None:
    config = {"storage": "fp16", "image_size": 224}
    # class token and mean of the last four blocks, two bytes each
    bank = stored_features(BASE, config, 1_331_167).cache
    assert bank == pytest.approx(1_331_167 * 8 * 768 * 2 / 2**20)
    assert frozen(BASE, config, 1_331_167).cache == 0, "a probe sees new views in each epoch"


def test_training_needs_states_and_activations() -> None:
    config = {
        "image_size": 224, "batch": 1024, "precision": "bf16", "machine": {"max_batch": 64}
    }  # fmt: skip
    need = trained(BASE, config, 0)
    assert need.disk == pytest.approx(86e6 * 24 / 2**20, rel=0.01)
    assert 5_900 < need.memory < 6_200, "64 images of 196 tokens, 12 blocks, 34 bytes a channel"
    assert trained(BASE, config | {"batch": 8}, 0).memory < need.memory
    assert tokens(BASE, {"crop": [512, 512]}) == 1024
    assert tokens(BASE, {"crop": {"kind": "byol"}, "image_size": 224}) == 196


def test_a_full_disk_stops_the_run_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MIMBENCH_CACHE", str(tmp_path))
    cells = [
        of(tmp_path, "in-ft", trained(BASE, {"image_size": 224}, 0)),
        of(tmp_path, "in-knn", stored_features(BASE, {"storage": "fp32"}, 10**6)),
    ]
    with caplog.at_level(logging.INFO):
        check_room(cells, tmp_path / "not" / "there", device="cpu")
    assert "room: at least 1.9 GB of disk for runs and 22.9 GB for features" in caplog.text
    monkeypatch.setattr("mimbench.suite.costs.footprint.free_disk_mb", lambda _: 5000.0)
    with pytest.raises(
        UserError, match=r"4\.9 GB free, the run needs at least 24\.8 GB .*MIMBENCH_CACHE"
    ):
        check_room(cells, tmp_path, device="cpu")
    check_room([replace(c, problem="no data") for c in cells], tmp_path, device="cpu")


def test_little_memory_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mimbench.suite.costs.footprint.free_memory_mb", lambda _: 500.0)
    check_room(
        [of(tmp_path, "in-ft", trained(BASE, {"image_size": 224}, 0))], tmp_path, device="cpu"
    )
    assert "and 500 MB are free: lower --max-batch" in caplog.text


def test_cells_side_by_side_share_the_cores() -> None:
    slots = make_slots(0, 0, 2)
    assert len(slots) == 2
    assert slots[0] is not slots[1]
    wanted = str(max(1, usable_cores() // 2))
    assert [s.environment["OMP_NUM_THREADS"] for s in slots] == [wanted] * 2
    assert [gigabytes(x) for x in (12.4, 2048)] == ["12 MB", "2.0 GB"]


def test_free_memory_of_a_gpu_is_asked_of_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask torch would hold memory on the GPU for as long as the suite runs."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert free_memory_mb("cuda:1") == 1234
    assert free_memory_mb("auto") == math.inf
