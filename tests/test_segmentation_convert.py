"""The map to mmseg's backbones: every tensor, the same function, at every size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.segmentation import backbone as backbones
from transfer.segmentation import linear
from transfer.segmentation.bias import resize_bias
from transfer.segmentation.convert import choose, convert, obstacles, token_grid
from transfer.segmentation.recipe import backbone_config

TAPS = (0, 1, 2, 3)
GOLDEN = [
    "dinov3", "dinov3_swiglu", "dinov2_swiglu_reg", "eva02", "clip", "aimv2", "ijepa", "beit", "capi",
]  # fmt: skip
SPEC = VitSpec(embed_dim=48, depth=4, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))


def noisy(spec: VitSpec) -> VitWeights:
    """Weights in which nothing is 0 or 1, so that nothing can be forgotten unseen."""
    weights = random_weights(spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


def build(weights: VitWeights, crop: tuple[int, int], **options: bool) -> nn.Module:
    norm = options.pop("tap_norm", False)
    kind, _ = choose(weights.spec, crop, relative_bias=True, tap_norm=norm)
    entry = backbone_config(weights.spec, kind, crop, TAPS, 0.0) | options
    if kind == "TimmMAE":
        entry["tap_norm"] = norm
    model = MODELS.build(entry)
    backbones.load(model, weights, kind, crop, tap_norm=norm)
    model.eval()
    return model


def ours(weights: VitWeights, images: Tensor, *, norm: bool = False) -> list[Tensor]:
    model = build_backbone(weights)
    features = model.blocks(model.normalise.inverse(images), TAPS, norm=norm)
    return [f.patches.permute(0, 3, 1, 2) for f in features]


def assert_same(found: tuple[Tensor, ...], expected: list[Tensor], size: tuple[int, int]) -> None:
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        assert a.shape[2:] == size
        scale = b.abs().max()
        torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("crop", [(64, 64), (128, 128), (96, 160)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layer_scale": True},
        {"position_rule": "bicubic-antialias", "norm_eps": 1e-5},
    ],
)
def test_mmseg_mae_computes_what_timm_does(crop: tuple[int, int], changes: dict[str, Any]) -> None:
    weights = noisy(replace(SPEC, **changes))
    model = build(weights, crop)
    assert type(model).__name__ == "MAE"
    images = torch.randn(2, 3, *crop, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_same(model(images), ours(weights, images), (crop[0] // 16, crop[1] // 16))


@pytest.mark.parametrize(
    "changes",
    [
        {"register_tokens": 3},
        {"register_tokens": 4, "position_rows_for_prefix": False, "layer_scale": True},
        {"class_token": False},
        {"pre_norm": True, "activation": "quick_gelu", "patch_bias": False},
        {"mlp": "swiglu", "mlp_dim": 128},
        {"qkv_bias": False},
    ],
)
def test_timm_backbone_holds_what_mmseg_cannot(changes: dict[str, Any]) -> None:
    weights = noisy(replace(SPEC, **changes))
    model = build(weights, (96, 160))
    assert type(model).__name__ == "TimmMAE"
    images = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_same(model(images), ours(weights, images), (6, 10))


def test_every_tap_can_pass_the_final_norm() -> None:
    weights = noisy(SPEC)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same(
            build(weights, (64, 64), tap_norm=True)(images),
            ours(weights, images, norm=True),
            (4, 4),
        )


def test_patch_14_runs_at_the_next_multiple_of_the_crop() -> None:
    spec = replace(SPEC, patch_size=14)
    kind, reasons = choose(spec, (64, 64), relative_bias=True, tap_norm=False)
    assert kind == "TimmMAE"
    assert reasons == ["a crop of 64x64 does not divide into patches of 14"]
    weights, images = noisy(spec), torch.randn(1, 3, 64, 64)
    enlarged = nn.functional.interpolate(images, size=(70, 70), mode="bilinear")
    with torch.no_grad():
        assert_same(build(weights, (64, 64))(images), ours(weights, enlarged), (5, 5))


def test_mmseg_beit_computes_what_timm_beit_does() -> None:
    from timm.models.beit import Beit

    spec = replace(SPEC, position="relative", layer_scale=True)
    weights = noisy(spec)
    reference = Beit(
        img_size=64, patch_size=16, embed_dim=48, depth=4, num_heads=3, init_values=1.0,
        num_classes=0, use_abs_pos_emb=False, use_rel_pos_bias=True,
    ).eval()  # fmt: skip
    tensors = {}
    for name, value in weights.tensors.items():
        stem = name.removesuffix("attn.qkv.bias")
        if name.endswith("attn.qkv.bias"):
            q, _, v = value.chunk(3)
            tensors |= {f"{stem}attn.q_bias": q, f"{stem}attn.v_bias": v}
        else:
            tensors[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    faults = reference.load_state_dict(tensors, strict=False)
    assert not [n for n in faults.missing_keys if "fc_norm" not in n]
    assert all(n.startswith("norm.") for n in faults.unexpected_keys)
    model = build(weights, (64, 64))
    assert type(model).__name__ == "BEiT"
    images = torch.randn(1, 3, 64, 64)
    x = torch.cat([reference.cls_token, reference.patch_embed(images)], dim=1)
    with torch.no_grad():
        for block in reference.blocks:
            x = block(x)
        found = model(images)[-1]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), x[:, 1:], atol=1e-5, rtol=1e-4)


def test_beit_runs_at_other_sizes_and_shapes() -> None:
    weights = noisy(replace(SPEC, position="relative", layer_scale=True))
    for rows, columns in ((8, 8), (6, 10), (3, 5)):
        crop = (16 * rows, 16 * columns)
        assert build(weights, crop)(torch.randn(1, 3, *crop))[0].shape == (1, 48, rows, columns)


def test_bias_keeps_its_centre_its_edge_and_its_token_rows() -> None:
    table = torch.randn(7 * 7 + 3, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_bias(table, grid=(4, 4), to=(9, 9))
    old, new = table[:-3].reshape(7, 7, 2), resized[:-3].reshape(17, 17, 2)
    torch.testing.assert_close(new[8, 8], old[3, 3], atol=1e-5, rtol=0)
    torch.testing.assert_close(new[8, 9], old[3, 4], atol=1e-5, rtol=0)
    torch.testing.assert_close(new[0, 0], old[0, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(new[16, 16], old[6, 6], atol=1e-4, rtol=0)
    assert torch.equal(resized[-3:], table[-3:])
    assert resize_bias(table, grid=(4, 4), to=(4, 4)) is table


def test_relative_bias_starts_from_zero_and_gamma_from_one() -> None:
    model = build(noisy(SPEC), (64, 64))
    tables = [v for n, v in model.named_parameters() if n.endswith("relative_position_bias_table")]
    gammas = [v for n, v in model.named_parameters() if "gamma" in n]
    assert len(tables) == 4
    assert len(gammas) == 8
    assert all(not table.any() for table in tables)
    assert all((gamma == 1).all() for gamma in gammas)


def test_every_tensor_is_used_or_named() -> None:
    weights = noisy(SPEC)
    found = convert(weights, "MAE", (64, 64), tap_norm=False)
    assert list(found.unused) == ["norm.weight", "norm.bias"]
    assert len(found.tensors) == 52 == found.total - 2
    assert found.summary.startswith("52 of 52, besides norm.weight, norm.bias (the recipe takes")
    whole = convert(weights, "TimmMAE", (64, 64), tap_norm=True)
    assert whole.summary == "54 of 54"
    assert not whole.unused


def test_table_is_resized_to_the_published_grid() -> None:
    spec = replace(SPEC, grid=(14, 14))
    table = convert(noisy(spec), "MAE", (512, 512), tap_norm=False).tensors["pos_embed"]
    assert table.shape == (1, 1 + 32 * 32, 48)
    assert token_grid(spec, (512, 512)) == (32, 32)
    model = MODELS.build(backbone_config(spec, "MAE", (512, 512), TAPS, 0.1))
    source = noisy(spec).tensors["pos_embed"]
    expected = model.resize_abs_pos_embed({"pos_embed": source.clone()})["pos_embed"]
    torch.testing.assert_close(table, expected)


def test_lost_and_misshapen_tensors_are_refused() -> None:
    weights = noisy(SPEC)
    short = {n: v for n, v in weights.tensors.items() if n != "blocks.2.mlp.fc1.weight"}
    with pytest.raises(UserError, match=r"missing blocks\.2\.mlp\.fc1\.weight"):
        convert(replace(weights, tensors=short), "MAE", (64, 64), tap_norm=False)
    model = build(weights, (64, 64))
    with pytest.raises(UserError, match=r"pos_embed has shape \(1, 65, 48\), not \(1, 17, 48\)"):
        backbones.load(model, weights, "MAE", (128, 128), tap_norm=False)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("name", GOLDEN)
def test_modern_vits_give_the_references_maps(name: str, shape: str, golden: Path) -> None:
    """All tokens stay in the sequence, so that every tap is the classifier's."""
    with np.load(golden / f"backbone_{name}.npz") as file:
        wanted = {key: torch.from_numpy(file[key]) for key in file.files}
    weights = read_vit(golden / f"backbone_{name}.pth", num_heads=3)
    side = 4 * weights.spec.patch_size
    entry = backbone_config(weights.spec, "TimmMAE", (side, side), (0, 1, 2), 0.0)
    model = MODELS.build(entry)
    used = backbones.load(model, weights, "TimmMAE", (side, side), tap_norm=False)
    assert used.total - len(used.unused) == len(used.tensors)
    assert all(n.startswith("norm.") for n in used.unused)
    with torch.no_grad():
        found = model.eval()(wanted[f"{shape}/images"])
    for i, tap in enumerate(found):
        reference = wanted[f"{shape}/block_{i}/patches"].permute(0, 3, 1, 2)
        torch.testing.assert_close(tap, reference, atol=1e-5, rtol=0)


def test_what_no_backbone_holds_is_refused_with_the_reason() -> None:
    narrow = replace(SPEC, position="rotary", num_heads=8)
    with pytest.raises(UserError, match="heads of width 6 cannot be rotated"):
        choose(narrow, (64, 64), relative_bias=True, tap_norm=False)
    with pytest.raises(UserError, match="defined for a class token and patches alone"):
        choose(
            replace(SPEC, position="relative", register_tokens=2),
            (64, 64), relative_bias=True, tap_norm=False,
        )  # fmt: skip
    assert obstacles(SPEC, "MAE", (64, 64)) == []


def test_frozen_beit_norms_every_tap_and_never_trains():
    weights = noisy(replace(SPEC, position="relative", layer_scale=True))
    config = linear.Config(data=Path(), crop=(64, 64), levels="four")
    found = linear.model_recipe(weights.spec, config)
    frozen, plain = MODELS.build(found.backbone), build(weights, (64, 64))
    used = backbones.load(frozen, weights, found.kind, (64, 64), tap_norm=found.tap_norm)
    frozen.train()
    assert used.summary == f"{len(weights.tensors)} of {len(weights.tensors)}"
    assert not any(module.training for module in frozen.layers)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        taps = plain(images)
    scale, shift = weights.tensors["norm.weight"], weights.tensors["norm.bias"]
    for tap, normed in zip(taps, frozen(images), strict=True):
        expected = nn.functional.layer_norm(tap.permute(0, 2, 3, 1), (48,), scale, shift, 1e-6)
        torch.testing.assert_close(normed.permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-4)
