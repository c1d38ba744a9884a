"""The name map into ViTDet: equal features, every tensor used, refusals with their reason."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers.activations import QuickGELU
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.modeling.backbone.vit import ViT

from mimbench.checkpoints.vitdet import VitDetTensors, vitdet_arguments
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.detection.convert import convert

SPEC = VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))


def noisy(spec: VitSpec, seed: int = 0) -> VitWeights:
    """Weights without a single zero or one, so that nothing can be lost unseen."""
    weights = random_weights(spec, seed)
    g = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=g)
        for name, tensor in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


def build(spec: VitSpec, converted: VitDetTensors, **options: Any) -> ViT:
    """detectron2's ViT with global attention everywhere and the converted weights."""
    norm: Any = partial(nn.LayerNorm, eps=spec.norm_eps)
    act: Any = QuickGELU if spec.activation == "quick_gelu" else nn.GELU
    arguments = vitdet_arguments(spec, converted)
    vit = ViT(img_size=64, norm_layer=norm, act_layer=act, **arguments, **options)
    lacking = vit.load_state_dict(dict(converted.tensors), strict=False)
    assert not lacking.unexpected_keys
    assert all("rel_pos" in name for name in lacking.missing_keys)
    return vit.eval()


def reference(weights: VitWeights, images: Tensor) -> Tensor:
    """timm's ViT without its class token and registers, before the final norm: (b, d, h, w)."""
    vit = build_backbone(weights).vit
    prefix = weights.spec.prefix_tokens
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))[:, prefix:]
        for i in range(weights.spec.depth):
            tokens = vit.get_submodule(f"blocks.{i}")(tokens)
    side = images.shape[2] // weights.spec.patch_size
    return tokens.transpose(1, 2).unflatten(2, (side, -1))


def features(vit: ViT, images: Tensor) -> Tensor:
    with torch.no_grad():
        return vit(images)["last_feat"]


FAMILIES = {
    "plain": SPEC,
    "no class token": replace(SPEC, class_token=False),
    "no qkv bias": replace(SPEC, qkv_bias=False),
    "layer scale": replace(SPEC, layer_scale=True),
    "registers": replace(SPEC, register_tokens=4, position_rows_for_prefix=False),
    "registers with rows": replace(SPEC, register_tokens=2),
    "fc_norm": replace(SPEC, final_norm="fc_norm", pool="avg"),
    "eps 1e-5": replace(SPEC, norm_eps=1e-5),
    "antialias": replace(SPEC, position_rule="bicubic-antialias"),
    "offset": replace(SPEC, position_rule="bicubic-offset"),
    "quick gelu": replace(SPEC, activation="quick_gelu"),
    "uneven mlp": replace(SPEC, mlp_dim=125),
}


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("side", [4, 6])
def test_features_equal_timm_without_prefix_tokens(
    spec: VitSpec, relative: bool, side: int
) -> None:
    weights = noisy(spec)
    converted = convert(weights, patch_size=16, side=side)
    vit = build(spec, converted, use_rel_pos=relative)
    images = torch.randn(2, 3, 16 * side, 16 * side, generator=torch.Generator().manual_seed(1))
    wanted = reference(weights, images)
    assert wanted.abs().mean() > 0.1
    torch.testing.assert_close(features(vit, images), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (128, 32), (48, 64)])
@pytest.mark.parametrize("layer_scale", [False, True])
def test_features_equal_on_images_that_are_not_square(
    size: tuple[int, int], layer_scale: bool
) -> None:
    spec = replace(SPEC, layer_scale=layer_scale)
    weights = noisy(spec)
    vit = build(spec, convert(weights, patch_size=16, side=4))
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        features(vit, images), reference(weights, images), atol=1e-5, rtol=1e-5
    )


def test_a_patch_projection_without_bias_gets_a_zero_one() -> None:
    converted = convert(noisy(replace(SPEC, patch_bias=False)), patch_size=16, side=4)
    assert converted.used == 38
    assert not converted.tensors["patch_embed.proj.bias"].any()
    assert converted.tensors["patch_embed.proj.bias"].shape == (48,)


def test_a_window_as_large_as_the_image_changes_nothing() -> None:
    weights = noisy(SPEC)
    vit = build(
        SPEC, convert(weights, patch_size=16, side=4), window_size=4, window_block_indexes=[0, 2]
    )
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        features(vit, images), reference(weights, images), atol=1e-5, rtol=1e-5
    )


def test_every_tensor_is_used_and_the_placeless_are_named() -> None:
    converted = convert(noisy(SPEC), patch_size=16, side=4)
    # 6 + 12 x 3 tensors in all, of which the class token and the final norm's two have no place
    assert converted.used == 39
    assert converted.placeless == ("cls_token", "norm.bias", "norm.weight")
    assert converted.report == (
        "39 of 39 backbone tensors used; ViTDet has no place for cls_token, norm.bias, norm.weight"
    )


def test_layer_scale_gains_count_as_used() -> None:
    converted = convert(noisy(replace(SPEC, layer_scale=True)), patch_size=16, side=4)
    assert converted.report.startswith("45 of 45 backbone tensors used")
    assert "LayerScale folded into attn.proj and mlp.fc2" in converted.report


def test_dropped_registers_are_reported() -> None:
    converted = convert(noisy(FAMILIES["registers"]), patch_size=16, side=4)
    assert "reg_token" in converted.placeless
    assert "4 register tokens dropped" in converted.report


def test_a_tensor_without_a_rule_is_refused() -> None:
    weights = noisy(SPEC)
    with pytest.raises(UserError, match="unexpected blocks.0.adapter"):
        convert(
            replace(weights, tensors={**weights.tensors, "blocks.0.adapter": torch.zeros(1)}),
            patch_size=16,
            side=4,
        )


def test_a_missing_tensor_is_refused() -> None:
    weights = noisy(SPEC)
    tensors = {k: v for k, v in weights.tensors.items() if k != "blocks.1.mlp.fc1.bias"}
    with pytest.raises(UserError, match="missing blocks.1.mlp.fc1.bias"):
        convert(replace(weights, tensors=tensors), patch_size=16, side=4)


def test_positions_keep_their_grid_where_detectron2_resizes_by_the_same_rule() -> None:
    converted = convert(noisy(SPEC), patch_size=16, side=64)
    assert (converted.table_side, converted.class_row) == (4, True)
    resized = convert(noisy(FAMILIES["offset"]), patch_size=16, side=64)
    assert (resized.table_side, resized.class_row) == (64, False)
    assert "resized once from 4x4 to 64x64 by the family's rule" in resized.report


def test_a_grid_that_is_not_square_is_resized() -> None:
    weights = noisy(replace(SPEC, grid=(2, 8)))
    converted = convert(weights, patch_size=16, side=4)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        features(build(weights.spec, converted), images),
        reference(weights, images),
        atol=1e-5,
        rtol=1e-5,
    )


def test_patch_14_is_resampled_to_16_and_said_so() -> None:
    weights = noisy(replace(SPEC, patch_size=14, grid=(5, 5)))
    converted = convert(weights, patch_size=16, side=4)
    assert converted.patch_size == 16
    assert converted.tensors["patch_embed.proj.weight"].shape == (48, 3, 16, 16)
    assert "patch kernel resampled from 14 to 16 (pseudo-inverse)" in converted.report
    vit = build(weights.spec, converted)
    # the resampled kernel gives the enlarged patch the token of the original one
    small = torch.rand(1, 3, 70, 70, generator=torch.Generator().manual_seed(5))
    large = torch.nn.functional.interpolate(small, size=80, mode="bilinear", align_corners=False)
    own = torch.nn.functional.conv2d(
        small,
        weights.tensors["patch_embed.proj.weight"],
        weights.tensors["patch_embed.proj.bias"],
        14,
    )
    with torch.no_grad():
        tokens = vit.patch_embed(large).permute(0, 3, 1, 2)
    alike = torch.nn.functional.cosine_similarity(tokens, own, dim=1)
    assert alike.mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "patch_size", "message"),
    [
        ({"patch_size": 14}, None, "patches of 14 give no pyramid"),
        ({"patch_size": 8}, 16, "only a kernel of 14 is resampled"),
        ({"position": "relative", "grid": (3, 4)}, 16, "only tables of square grids"),
        ({"position": "rotary", "num_heads": 8}, 16, "heads of width 6 cannot be rotated"),
    ],
)
def test_what_vitdet_cannot_hold_is_refused_with_the_reason(
    changes: dict[str, Any], patch_size: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        convert(random_weights(replace(SPEC, **changes), 0), patch_size=patch_size, side=4)
