"""Every published layout is recognised by one format and read exactly, at tiny, B and L size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mimbench.checkpoints.files import convert_raw, read_vit, write_weights
from mimbench.checkpoints.formats import available
from mimbench.checkpoints.reading.layout import Options, Raw
from mimbench.model import mismatches
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec
from tests.support.checkpoint_layouts import BASE, LARGE, LAYOUTS, TINY, canonical, mocov3

ROUNDED = {"dinov2-registers", "hf-dinov2-registers"}
"""Layouts that are read with one rounding: a position row moves into the class token."""


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_tiny_file_is_read_exactly(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    weights = read_vit(layout.save(TINY, tmp_path), num_heads=3)
    assert weights.format == layout.format
    assert weights.spec == layout.spec(TINY)
    wanted = canonical(layout.spec(TINY))
    if "relative" in weights.spec.position and name in ("beit", "simmim"):
        shared = wanted["blocks.0.attn.relative_position_bias_table"]
        wanted |= {n: shared for n in wanted if n.endswith("bias_table")}
    assert wanted.keys() == weights.tensors.keys()
    for key, tensor in weights.tensors.items():
        tolerance = 1e-6 if name in ROUNDED else 0.0
        torch.testing.assert_close(tensor, wanted[key], atol=tolerance, rtol=0.0)
    assert set(layout.extras) <= weights.extras.keys()


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_backbone_of_a_tiny_file_sees(name: str, tmp_path: Path) -> None:
    weights = read_vit(LAYOUTS[name].save(TINY, tmp_path), num_heads=3)
    features = build_backbone(weights)(torch.rand(2, 3, 64, 96))
    assert features.patches.shape == (2, 4, 6, 48)
    assert features.registers.shape == (2, weights.spec.register_tokens, 48)
    assert torch.isfinite(features.patches).all()
    assert (features.cls[0] - features.cls[1]).abs().max() > 1e-6


@pytest.mark.parametrize("size", [BASE, LARGE], ids=["B", "L"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_published_sizes_fit_without_being_told_heads(name: str, size: VitSpec) -> None:
    layout = LAYOUTS[name]
    spec = layout.spec(size)
    tensors = canonical(spec, meta=True)
    if layout.real:
        tensors["pos_embed"] = canonical(replace(spec, depth=0))["pos_embed"]
    said = layout.beside.get("open_clip_config.json", {})
    raw = Raw(path=Path("file.pth"), top=layout.write(tensors), open_clip=said)
    claimed, converted = convert_raw(raw, Options())
    assert claimed == layout.format
    assert converted.spec == spec
    assert mismatches(converted.spec, converted.tensors) == []
    assert not converted.heads_asked


ELSEWHERE = {
    "mimbench", "eva02", "aimv2", "ijepa", "convnext", "swin", "hiera", "resnet",
    "pe", "capi", "torchvision", "sam", "hf-clip", "timm-architecture",
}  # fmt: skip
"""Read in test_golden_backbones.py, test_level_formats.py and test_formats_abroad.py."""


def test_every_format_has_a_layout() -> None:
    assert {layout.format for layout in LAYOUTS.values()} | ELSEWHERE == set(available())


def test_our_own_file_comes_back_as_written(tmp_path: Path) -> None:
    first = read_vit(LAYOUTS["beit-finetuned"].save(TINY, tmp_path), num_heads=3)
    path = tmp_path / "ours.safetensors"
    write_weights(path, first)
    second = read_vit(path)
    assert second.spec == first.spec
    assert second.format == "mimbench"
    assert all(torch.equal(t, second.tensors[n]) for n, t in first.tensors.items())
    once = path.read_bytes()
    write_weights(path, first)
    assert path.read_bytes() == once


def test_networks_of_one_file_are_different_checkpoints(tmp_path: Path) -> None:
    path = LAYOUTS["hpm"].save(TINY, tmp_path)
    student, ema = (read_vit(path, which=w, num_heads=3) for w in ("student", "ema"))
    default = read_vit(path, num_heads=3)
    assert default.digest == student.digest != ema.digest
    assert default.which == "student"
    difference = ema.tensors["norm.bias"] - student.tensors["norm.bias"]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.01))


@pytest.mark.parametrize("name", ["dino-training", "ibot-training"])
def test_pairs_give_the_teacher_unless_asked(name: str, tmp_path: Path) -> None:
    path = LAYOUTS[name].save(TINY, tmp_path)
    teacher, student = (read_vit(path, which=w, num_heads=3) for w in (None, "student"))
    assert (teacher.which, student.which) == ("teacher", "student")
    torch.testing.assert_close(student.tensors["norm.bias"], teacher.tensors["norm.bias"] + 0.01)
    with pytest.raises(UserError, match="no network 'ema'; --which can be teacher, student"):
        read_vit(path, which="ema", num_heads=3)


def test_heads_are_asked_for_only_where_no_rule_knows_them(tmp_path: Path) -> None:
    path = LAYOUTS["mae-training"].save(TINY, tmp_path)
    with pytest.raises(UserError, match=r"48 is no published width; say it with --num-heads N"):
        read_vit(path)
    with pytest.raises(UserError, match="5 heads do not divide the width 48"):
        read_vit(path, num_heads=5)
    three, six = (read_vit(path, num_heads=n) for n in (3, 6))
    assert three.digest != six.digest


def test_moco_small_has_twelve_heads_and_six_give_other_features(tmp_path: Path) -> None:
    small = replace(TINY, embed_dim=384, num_heads=12, mlp_dim=1536, depth=1)
    path = tmp_path / "moco.pth"
    torch.save(mocov3(canonical(small)), path)
    weights = read_vit(path)
    assert weights.spec.num_heads == 12
    # mmselfsup's copy of it has OpenMMLab's names, and tells itself by the momentum encoder
    state = LAYOUTS["mmpretrain"].write(canonical(small))
    state["state_dict"]["momentum_encoder.module.0.cls_token"] = torch.zeros(1, 1, 384)
    torch.save(state, tmp_path / "mmselfsup.pth")
    assert read_vit(tmp_path / "mmselfsup.pth").spec.num_heads == 12
    images = torch.rand(1, 3, 64, 64)
    right = build_backbone(weights)(images).cls
    wrong = build_backbone(weights.with_spec(num_heads=6))(images).cls
    assert (right - wrong).abs().max() > 1e-3
