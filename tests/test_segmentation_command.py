"""The command `python -m transfer.segmentation`: what it prints and refuses."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config

from mimbench.checkpoints.files import write_weights
from mimbench.vit.weights import VitSpec, random_weights
from transfer.segmentation.command import main

TINY = VitSpec(embed_dim=24, depth=4, num_heads=3, mlp_dim=96, patch_size=16, grid=(4, 4))


def test_the_command_prints_the_whole_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(tmp_path / "tiny.safetensors", random_weights(TINY, seed=0))
    entry = {
        "title": "mIoU", "group": "segmentation", "task": "transfer.segmentation.upernet",
        "dataset": "ade", "config": {"lr": 2e-4}, "profiles": {"paper": {"config": {"batch": 8}}},
    }  # fmt: skip
    manifest = {
        "reference_file": str(Path(__file__).parents[1] / "mimbench" / "reference.yaml"),
        "defaults": {"paper": [], "quick": [], "demo": []},
        "benchmarks": {"ade-upernet-160": entry},
    }
    (tmp_path / "benchmarks.yaml").write_text(json.dumps(manifest))
    command = [
        str(tmp_path / "tiny.safetensors"),
        "--benchmarks",
        str(tmp_path / "benchmarks.yaml"),
    ]
    assert main([*command, "--print-config", "--set", "layer_decay=0.8", "--device", "cpu"]) == 0
    (tmp_path / "printed.py").write_text(capsys.readouterr().out)
    cfg = Config.fromfile(tmp_path / "printed.py")
    assert cfg.optim_wrapper.optimizer.lr == 2e-4
    assert cfg.optim_wrapper.paramwise_cfg.decay_rate == 0.8
    assert cfg.train_dataloader.batch_size == 8
    assert cfg.model.backbone.embed_dims == 24


def test_show_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", "2"]) == 2
    assert "--show needs --eval-only" in capsys.readouterr().err
