"""Exports are read back as the same function, by us and by the models they are named for."""

import ast
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers.activations import QuickGELU
from timm.models.beit import Beit
from torch import nn

from mimbench.__main__ import dispatch
from mimbench.checkpoints.export import export
from mimbench.checkpoints.files import read_vit, read_weights
from mimbench.networks.kinds import plain
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, fold_layer_scale, random_weights
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical
from transfer.detection.convert import convert


def weights_of(spec: VitSpec) -> VitWeights:
    return VitWeights(spec=spec, tensors=canonical(spec), format="test", digest="0" * 64)


def tokens(weights: VitWeights, images: torch.Tensor) -> torch.Tensor:
    features = build_backbone(weights)(images)
    return torch.cat([features.cls[:, None], features.registers, features.patches.flatten(1, 2)], 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_native_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    weights = weights_of(LAYOUTS[name].spec(TINY))
    assert export(weights, "native", tmp_path / "w.safetensors") == []
    back = read_vit(tmp_path / "w.safetensors")
    assert back.spec == weights.spec
    assert all(torch.equal(back.tensors[n], t) for n, t in weights.tensors.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mae_round_trip_is_exact(suffix: str, tmp_path: Path) -> None:
    weights = weights_of(TINY)
    export(weights, "mae", tmp_path / f"w{suffix}")
    back = read_vit(tmp_path / f"w{suffix}", num_heads=3)
    assert (back.format, back.spec) == ("mae", weights.spec)
    assert all(torch.equal(back.tensors[n], t) for n, t in weights.tensors.items())


TIMM_CASES = [
    "timm-pth",
    "dinov2-registers",
    "openclip",
    "beit-finetuned",
    "dinov3",
    "dino-backbone",
]


@pytest.mark.parametrize("name", TIMM_CASES)
def test_timm_round_trip_gives_the_same_features(name: str, tmp_path: Path) -> None:
    weights = weights_of(LAYOUTS[name].spec(TINY))
    export(weights, "timm", tmp_path / "w.safetensors")
    said = weights.spec.activation if weights.spec.pre_norm else None
    back = plain(read_weights(tmp_path / "w.safetensors", num_heads=3, activation=said), "this")
    images = torch.rand(2, 3, 64, 64)
    says_nothing = replace(back, spec=replace(weights.spec, position_rule=back.spec.position_rule))
    assert back.tensors.keys() == weights.tensors.keys()
    assert all(torch.equal(back.tensors[n], t) for n, t in weights.tensors.items())
    torch.testing.assert_close(tokens(says_nothing, images), tokens(weights, images))


def test_timm_itself_reads_the_export(tmp_path: Path) -> None:
    spec = replace(TINY, embed_dim=192, mlp_dim=768, grid=(14, 14), depth=2)
    weights = weights_of(spec)
    export(weights, "timm", tmp_path / "w.safetensors")
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=0, global_pool="",
        checkpoint_path=str(tmp_path / "w.safetensors"),
    ).eval()  # fmt: skip
    images = torch.randn(1, 3, 224, 224)
    same = weights.with_spec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(model(images), tokens(same, images), atol=1e-5, rtol=1e-5)


def test_timms_beit_loads_the_export_strictly(tmp_path: Path) -> None:
    weights = weights_of(LAYOUTS["beit-finetuned"].spec(TINY))
    export(weights, "timm", tmp_path / "w.safetensors")
    model = Beit(
        img_size=64, embed_dim=48, depth=3, num_heads=3, num_classes=0, init_values=0.1,
        use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="avg",
    )  # fmt: skip
    model.load_state_dict(load_file(tmp_path / "w.safetensors"), strict=True)


def test_detectron2_round_trip_keeps_every_patch_feature(tmp_path: Path) -> None:
    weights = weights_of(TINY)
    notes = export(weights, "detectron2", tmp_path / "w.pth")
    assert any("pretrain_img_size=64, pretrain_use_cls_token=True" in note for note in notes)
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    assert all(name.startswith("backbone.net.") for name in state)
    back = read_vit(tmp_path / "w.pth", num_heads=3)
    assert back.format == "vitdet"
    for name, tensor in back.tensors.items():
        wanted = weights.tensors[name][:, 1:] if name == "pos_embed" else weights.tensors[name]
        assert torch.equal(tensor, wanted), name


def test_detectron2s_own_vit_loads_the_export_strictly(tmp_path: Path) -> None:
    vit = pytest.importorskip("detectron2.modeling.backbone.vit")
    export(weights_of(TINY), "detectron2", tmp_path / "w.pth")
    model = vit.ViT(
        img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=3, use_rel_pos=False,
        pretrain_img_size=64, pretrain_use_cls_token=True, out_feature="last",
    )  # fmt: skip
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    own = {name.removeprefix("backbone.net."): tensor for name, tensor in state.items()}
    model.load_state_dict(own, strict=True)


REGISTERS = replace(TINY, register_tokens=4, position_rows_for_prefix=False)
HELD = {
    "plain": TINY,
    "registers": REGISTERS,
    "registers with rows": replace(TINY, register_tokens=2),
    "quick gelu": replace(TINY, activation="quick_gelu"),
    "layer scale": replace(TINY, layer_scale=True),
    "no biases": replace(TINY, qkv_bias=False),
    "another rule": replace(TINY, position_rule="bicubic-offset"),
}


def noisy(spec: VitSpec) -> VitWeights:
    """Weights without a zero, so that nothing can be lost unseen."""
    weights, g = random_weights(spec, 0), torch.Generator().manual_seed(0)
    shaken = {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in weights.tensors.items()}
    return replace(weights, tensors=shaken)


@pytest.mark.parametrize("spec", HELD.values(), ids=HELD)
def test_detection_and_export_hold_the_same_tensors(spec: VitSpec, tmp_path: Path) -> None:
    """The export refused registers and QuickGELU, which detection has always run."""
    weights = noisy(spec)
    notes = export(weights, "detectron2", tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    own = convert(weights, patch_size=None, side=spec.grid[0])
    assert {f"backbone.net.{name}" for name in own.tensors} <= state.keys()
    for name, tensor in own.tensors.items():
        found = state.pop(f"backbone.net.{name}")
        if name == "pos_embed":
            found, tensor = found[:, -16:], tensor[:, -16:]
        assert torch.equal(found, tensor), name
    # a ViT with biases holds weights without: they are zero
    assert all(name.endswith(".qkv.bias") and not t.any() for name, t in state.items())
    assert bool(spec.register_tokens) == ("register tokens dropped" in notes[0])
    assert (spec.activation == "quick_gelu") == ("QuickGELU" in notes[1])


@pytest.mark.parametrize("spec", HELD.values(), ids=HELD)
def test_detectron2s_vit_built_as_the_note_says_gives_the_features(
    spec: VitSpec, tmp_path: Path
) -> None:
    vit = pytest.importorskip("detectron2.modeling.backbone.vit")
    weights = noisy(spec)
    note = export(weights, "detectron2", tmp_path / "w.pth")[1]
    given = dict(re.findall(r"(\w+)=([\d.]+|True|False)", note.partition(", act_layer")[0]))
    arguments = {name: ast.literal_eval(value) for name, value in given.items() if name != "eps"}
    quick = "timm.layers.activations.QuickGELU" in note
    model = vit.ViT(
        img_size=64,
        act_layer=QuickGELU if quick else nn.GELU,
        norm_layer=partial(nn.LayerNorm, eps=spec.norm_eps),
        use_rel_pos=False,
        out_feature="last",
        **arguments,
    ).eval()
    state = torch.load(tmp_path / "w.pth", weights_only=True)["model"]
    model.load_state_dict({n.removeprefix("backbone.net."): t for n, t in state.items()})
    backbone = build_backbone(weights)
    images = torch.rand(1, 3, 64, 64)
    x = backbone.vit._pos_embed(backbone.vit.patch_embed(images))[:, spec.prefix_tokens :]
    for i in range(spec.depth):
        x = backbone.vit.get_submodule(f"blocks.{i}")(x)
    wanted = x.transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(model(images)["last"], wanted, atol=1e-5, rtol=1e-5)


def test_a_table_that_is_not_square_is_refused_by_detectron2s_names(tmp_path: Path) -> None:
    weights = noisy(replace(TINY, grid=(2, 8)))
    with pytest.raises(UserError, match="for 2x8 patches, and detectron2's ViT holds a square one"):
        export(weights, "detectron2", tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["dinov2", "dinov3", "beit"])
def test_folding_layer_scale_changes_nothing(name: str) -> None:
    weights = weights_of(LAYOUTS[name].spec(TINY))
    state = fold_layer_scale(weights)
    assert not [name for name in state if "gamma" in name]
    plain = replace(weights, tensors=state, spec=replace(weights.spec, layer_scale=False))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(tokens(plain, images), tokens(weights, images), atol=1e-5, rtol=1e-5)


def test_dropping_a_key_bias_changes_nothing() -> None:
    weights = weights_of(TINY)
    zeroed = dict(weights.tensors)
    for name in [n for n in zeroed if n.endswith("attn.qkv.bias")]:
        assert zeroed[name][48:96].abs().max() > 0.01
        zeroed[name] = zeroed[name].clone()
        zeroed[name][48:96] = 0.0
    images = torch.rand(1, 3, 64, 64)
    wanted = tokens(weights, images)
    torch.testing.assert_close(
        tokens(replace(weights, tensors=zeroed), images), wanted, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "to", "reason"),
    [
        ("beit", "mae", "cannot hold position = 'relative'"),
        ("beit", "detectron2", "own ViT has no relative positions"),
        ("dinov2-swiglu", "detectron2", "own ViT has no swiglu blocks"),
        ("dinov2-swiglu", "mae", "cannot hold mlp = 'swiglu'"),
        ("openclip", "detectron2", "own ViT has no norm before the first block"),
    ],
)
def test_what_a_target_cannot_hold_is_refused(
    name: str, to: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        export(weights_of(LAYOUTS[name].spec(TINY)), to, tmp_path / "w.pth")


def test_the_command_corrects_what_a_file_cannot_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = LAYOUTS["openai-clip"].save(TINY, tmp_path)
    out = tmp_path / "ours.safetensors"
    command: list[Any] = ["export", str(source), "--num-heads", "3", "-o", str(out)]
    assert dispatch([*command, "--set", "norm_eps=1e-6", "--set", "mean=[0,0,0]"]) == 0
    weights = read_vit(out)
    assert (weights.spec.norm_eps, weights.spec.mean) == (1e-6, (0.0, 0.0, 0.0))
    assert "set by hand: norm_eps=1e-6" in weights.notes
    with pytest.raises(UserError, match="--set contradicts the tensors"):
        dispatch([*command, "--set", "depth=4"])
