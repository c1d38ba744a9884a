"""Files of networks with levels, under every layout that is read: rebuilt from timm's own weights."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mimbench.checkpoints.files import read_weights
from mimbench.networks.frozen import LevelNetwork, at_size
from mimbench.networks.levels import LevelSpec, LevelWeights, check_levels, random_levels
from mimbench.system.errors import UserError
from mimbench.training.optim import layer_decay_groups

CONVNEXT = LevelSpec(
    architecture="convnext_tiny", options={"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}
)
CONVNEXT_V2 = LevelSpec(
    architecture="convnextv2_tiny", options={"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24]}
)
SWIN = LevelSpec(
    architecture="swin_tiny_patch4_window7_224",
    options={"embed_dim": 8, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 2},
    image_size=(64, 64),
)
HIERA = LevelSpec(
    architecture="hiera_tiny_224",
    options={"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1]},
    image_size=(64, 64),
)
RESNET = LevelSpec(
    architecture="resnet50", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
SPECS = {s.architecture: s for s in (CONVNEXT, CONVNEXT_V2, SWIN, HIERA, RESNET)}


def shaken(spec: LevelSpec) -> LevelWeights:
    """Return weights none of which is at its first value."""
    weights = random_levels(spec, seed=3)
    draw = torch.Generator().manual_seed(7)
    tensors = {n: t + 0.1 * torch.rand(t.shape, generator=draw) for n, t in weights.tensors.items()}
    return LevelWeights(spec=spec, tensors=tensors, format="random", digest="0" * 64)


def official_convnext(name: str) -> str:
    name = re.sub(r"^stem\.", "downsample_layers.0.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
    name = re.sub(r"\.blocks\.", ".", name).replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
    name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
    return re.sub(r"^head\.norm", "norm", name)


def sparse(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return a tensor as FCMAE's sparse encoder names and stores it."""
    name = "encoder." + official_convnext(name)
    if tensor.dim() == 4 and "downsample_layers.0." not in name:
        places = tensor.transpose(2, 3).flatten(2).permute(2, 1, 0)
        return name.replace("weight", "kernel"), places[:, 0] if tensor.shape[1] == 1 else places
    if "pwconv" in name:
        name = re.sub(r"(pwconv\d)", r"\1.linear", name)
    if ".norm." in name:
        name = name.replace(".norm.", ".norm.ln.")
    return name, tensor[None] if name.endswith("bias") else tensor


def layouts() -> dict[str, tuple[LevelSpec, Any]]:
    """Return name -> specification and what a tensor of timm's name is called there."""
    return {
        "convnext-official": (CONVNEXT, lambda n, t: (official_convnext(n), t)),
        "convnext-timm": (CONVNEXT, lambda n, t: (n, t)),
        "convnextv2-official": (CONVNEXT_V2, lambda n, t: (official_convnext(n), t)),
        "fcmae": (CONVNEXT_V2, sparse),
        "swin-timm": (SWIN, lambda n, t: (n, t)),
        "swin-official": (
            SWIN,
            lambda n, t: (re.sub(r"layers\.(\d)\.downs", lambda m: f"layers.{int(m[1]) - 1}.downs", n), t),
        ),
        "hiera": (HIERA, lambda n, t: (n.replace("head.norm", "encoder_norm"), t)),
        "resnet": (RESNET, lambda n, t: (n, t)),
        "spark": (RESNET, lambda n, t: (f"sparse_encoder.sp_cnn.{n}", t)),
    }  # fmt: skip


@pytest.mark.parametrize("name", layouts())
def test_a_file_gives_the_tensors_it_was_made_of(name: str, tmp_path: Path) -> None:
    spec, renamed = layouts()[name]
    weights = shaken(spec)
    tensors = dict(weights.tensors)
    if name == "fcmae":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("head.norm")}
    state = dict(renamed(n, t) for n, t in tensors.items())
    if name == "fcmae":
        state |= {"mask_token": torch.zeros(1, 8, 1, 1), "pred.weight": torch.zeros(3, 8, 1, 1)}
    torch.save({"model": state}, tmp_path / "x.pth")
    read = read_weights(tmp_path / "x.pth", num_heads=1 if name == "hiera" else None)
    assert isinstance(read, LevelWeights)
    assert read.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(read.tensors[key], tensor), key
    assert read.spec.final_norm == (name != "fcmae")
    images = torch.rand(2, 3, 64, 64)
    ours, theirs = LevelNetwork(read), LevelNetwork(weights)
    for a, b in zip(ours.maps(images), theirs.maps(images), strict=True):
        assert torch.equal(a, b)
    if name != "fcmae":
        assert torch.equal(ours(images), theirs(images))


def test_a_sparse_kernel_that_is_not_turned_shows(tmp_path: Path) -> None:
    """Rows and columns exchanged load without complaint and give other features."""
    weights = shaken(CONVNEXT_V2)
    wrong = {
        n: t.transpose(2, 3).contiguous() if "conv_dw.weight" in n else t
        for n, t in weights.tensors.items()
    }
    images = torch.rand(1, 3, 64, 96)
    right, turned = (
        LevelNetwork(LevelWeights(spec=CONVNEXT_V2, tensors=t, format="", digest="")).maps(images)
        for t in (weights.tensors, wrong)
    )
    assert (right[0] - turned[0]).abs().max() > 1e-3


def test_heads_of_an_unknown_hiera_are_asked_for(tmp_path: Path) -> None:
    state = {n.replace("head.", ""): t for n, t in shaken(HIERA).tensors.items()}
    torch.save({"model_state": state}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"8 is no published width of Hiera; .* --num-heads N"):
        read_weights(tmp_path / "x.pth")


def test_a_norm_stored_twice_is_read_once(tmp_path: Path) -> None:
    weights = shaken(CONVNEXT)
    state = {official_convnext(n): t for n, t in weights.tensors.items()}
    state |= {n.replace("norm.", "norms.3."): t for n, t in state.items() if n.startswith("norm.")}
    torch.save(state, tmp_path / "dinov3.pth")
    assert read_weights(tmp_path / "dinov3.pth").extras == {"norm stored twice": 2}


@pytest.mark.parametrize("name", SPECS)
def test_batches_do_not_mix_and_pictures_of_other_sizes_are_read(name: str) -> None:
    network = LevelNetwork(shaken(SPECS[name]))
    images = torch.rand(2, 3, 96, 64)
    whole = network.maps(images)
    for level, found in zip(SPECS[name].levels, whole, strict=True):
        assert found.shape == (2, level.channels, 96 // level.stride, 64 // level.stride)
        assert torch.isfinite(found).all()
    for i, found in enumerate(network.maps(images[1:])):
        torch.testing.assert_close(found, whole[i][1:], atol=1e-4, rtol=1e-4)


def test_hiera_says_what_sizes_it_reads() -> None:
    with pytest.raises(UserError, match="multiples of 32, this one is 64x80"):
        LevelNetwork(shaken(HIERA)).maps(torch.rand(1, 3, 64, 80))


def test_a_swins_windows_grow_with_the_picture() -> None:
    """SimMIM: windows of 6 at 192 become 7 at 224, the tables resized geometrically."""
    spec = LevelSpec(
        architecture=SWIN.architecture, options={**SWIN.options, "window_size": 6}, image_size=(192, 192)
    )  # fmt: skip
    weights = shaken(spec)
    larger = at_size(weights, (224, 224))
    assert larger.spec.options["window_size"] == 7
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert larger.tensors[name].shape == (169, 1)
    # near offsets keep their values
    assert torch.allclose(larger.tensors[name][84], weights.tensors[name][60], atol=1e-4)
    assert LevelNetwork(weights)(torch.rand(1, 3, 224, 224)).shape == (1, 64)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (LevelSpec(architecture="convnext_tiny"), 20),
        (LevelSpec(architecture="hiera_base_224"), 26),
        (LevelSpec(architecture="swin_base_patch4_window7_224"), 26),
    ],
)
def test_layer_decay_counts_blocks_over_all_stages(spec: LevelSpec, count: int) -> None:
    assert spec.layers == count
    levels = {name: spec.layer_of(name) for name in spec.shapes()}
    assert min(levels.values()) == 0
    assert {
        v for n, v in levels.items() if "norm" in n and n.split(".")[0] in ("head", "norm")
    } == {count - 1}
    assert spec.layer_of("head.fc.weight") == count - 1


def test_what_leads_into_a_stage_goes_with_its_first_block() -> None:
    spec = LevelSpec(architecture="convnext_tiny")
    assert spec.layer_of("stem.0.weight") == 0
    assert spec.layer_of("stages.0.blocks.0.conv_dw.weight") == 1
    assert spec.layer_of("stages.1.downsample.1.weight") == 4
    assert spec.layer_of("stages.1.blocks.0.gamma") == 4
    assert spec.layer_of("stages.3.blocks.2.gamma") == 18


def test_convnexts_published_groups_of_three() -> None:
    """Stem 0; stages 0 and 1 are 1 and 2; stage 2 is 3 + b // 3; stage 3 is 12 of depths 3 3 27 3."""
    spec = LevelSpec(architecture="convnext_small")
    with torch.device("meta"):
        parameters = [(n, nn.Parameter(torch.empty(s))) for n, s in spec.shapes().items()]
    groups = layer_decay_groups(parameters, spec=spec, decay=0.5, weight_decay=0.05, joined=3)
    scale: dict[Any, Any] = {n: g["lr_scale"] for g in groups for n in g["names"]}  # pyright: ignore[reportGeneralTypeIssues]
    top = 13
    for stage, depth in enumerate((3, 3, 27, 3)):
        for b in range(depth):
            level = (1, 2, 3 + b // 3, 12)[stage]
            assert scale[f"stages.{stage}.blocks.{b}.mlp.fc1.weight"] == 0.5 ** (top - level)
    assert scale["stem.0.weight"] == 0.5**top
    assert scale["stages.3.downsample.1.weight"] == 0.5 ** (top - 12)
    assert scale["head.norm.weight"] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": {"checkpoint_path": 1}}, "option checkpoint_path"),
        ({"options": {"dims": [8] * 9}}, r"dims = \[8, 8"),
        ({"options": {"depths": [10**9] * 4}}, r"depths = \[1000000000"),
        ({"architecture": "hf-hub:someone/something"}, "which timm does not have"),
        ({"std": (0.0, 1.0, 1.0)}, "normalise no image"),
    ],
)
def test_a_header_is_trusted_with_no_more_than_shapes(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_levels(replace(CONVNEXT, **change))
