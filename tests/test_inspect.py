"""`inspect` says what a file holds and what is wrong with it, for people and for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mimbench.__main__ import dispatch
from mimbench.checkpoints.files import read_vit
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical, hf_vit


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = dispatch(["inspect", *arguments])
    return code, capsys.readouterr().out


def test_text_names_format_networks_groups_and_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = LAYOUTS["hpm"].save(TINY, tmp_path)
    code, out = inspect(capsys, str(path), "--num-heads", "3", "--which", "ema")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "network ema (also: student)" in lines
    assert "architecture width 48, 3 blocks, 3 heads, mlp 192, gelu" in lines
    assert "patches 16 px, grid 4x4 = image 64x64" in lines
    assert "blocks 36/36 84,816 float32 matched" in lines
    assert "loss predictor 3 left out" in lines
    assert read_vit(path, num_heads=3, which="ema").digest in out
    assert max(map(len, out.splitlines()[1:])) <= 100


@pytest.mark.parametrize("name", LAYOUTS)
def test_json_agrees_with_what_is_read(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = LAYOUTS[name].save(TINY, tmp_path)
    code, out = inspect(capsys, str(path), "--num-heads", "3", "--json")
    described: dict[str, Any] = json.loads(out)
    weights = read_vit(path, num_heads=3)
    assert code == 0
    assert described["verdict"] in ("ok", "suspicious")
    assert described["spec"] == json.loads(json.dumps(weights.spec.to_json()))
    assert (described["digest"], described["format"]) == (weights.digest, weights.format)
    matched = [g for g in described["groups"] if g["status"] == "matched"]
    assert sum(g["parameters"] for g in matched) == sum(t.numel() for t in weights.tensors.values())
    left_out = {g["group"]: int(g["tensors"]) for g in described["groups"] if g not in matched}
    assert left_out == dict(weights.extras)


def test_faults_are_counted_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = canonical(TINY)
    del state["blocks.2.norm1.weight"]
    state["adapter.weight"] = torch.ones(2)
    state["norm.bias"] = torch.ones(47)
    torch.save({"model": state}, tmp_path / "bad.pth")
    code, out = inspect(capsys, str(tmp_path / "bad.pth"), "--num-heads", "3")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 1
    assert "blocks 35/36 84,768 float32 matched" in lines
    assert "blocks.2.norm1.weight 1 0 missing" in lines
    assert "adapter.weight 1 2 float32 extra" in lines
    assert "norm.bias 1 47 float32 wrong shape" in lines
    assert lines[-1].startswith("verdict refused: missing blocks.2.norm1.weight")


def test_a_file_that_cannot_be_read_is_a_verdict_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.pth").touch()
    code, out = inspect(capsys, str(tmp_path / "empty.pth"), "--json")
    assert code == 1
    assert json.loads(out)["reason"].endswith(
        "empty.pth: the file is empty; download or copy it again"
    )


def test_doubts_make_a_file_suspicious(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = canonical(TINY)
    state["norm.weight"], state["norm.bias"] = state["norm.bias"], state["norm.weight"]
    torch.save({"model": state}, tmp_path / "odd.pth")
    code, out = inspect(capsys, str(tmp_path / "odd.pth"), "--num-heads", "3")
    assert code == 0
    assert "norm.weight lies around zero as a bias does" in out
    assert "suspicious: it can be evaluated" in out


def folder(tmp_path: Path, *, sharded: bool) -> Path:
    tensors = {n: t.contiguous().clone() for n, t in hf_vit(canonical(TINY)).items()}
    config = {"hidden_size": 48, "num_attention_heads": 6, "layer_norm_eps": 1e-6,
              "hidden_act": "quick_gelu", "image_size": 64, "patch_size": 16}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    if not sharded:
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path
    names = sorted(tensors)
    parts = {"model-1-of-2.safetensors": names[:20], "model-2-of-2.safetensors": names[20:]}
    for file, own in parts.items():
        save_file({n: tensors[n] for n in own}, tmp_path / file)
    weight_map = {n: file for file, own in parts.items() for n in own}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("sharded", [True, False])
def test_a_hugging_face_folder_says_what_tensors_cannot(sharded: bool, tmp_path: Path) -> None:
    weights = read_vit(folder(tmp_path, sharded=sharded))
    spec = weights.spec
    assert (spec.num_heads, spec.norm_eps, spec.activation) == (6, 1e-6, "quick_gelu")
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert weights.notes == ()
    assert all(torch.equal(weights.tensors[n], t) for n, t in canonical(TINY).items())


def test_a_folders_digest_covers_weights_and_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path, sharded=True)
    before = read_vit(path).digest
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))
    assert read_vit(path).digest != before
