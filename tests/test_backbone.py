"""The backbone's contract: any grid, any block, one normalisation, nothing loaded by halves."""

from dataclasses import replace

import pytest
import torch

from mimbench.model import mismatches
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.network import build_vit, load_encoder
from mimbench.vit.positions import PositionRule, resize_table
from mimbench.vit.weights import VitSpec, VitWeights, random_weights, shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": False},
        {"register_tokens": 4, "position_rows_for_prefix": False},
        {"layer_scale": True, "mlp": "swiglu"},
        {"pre_norm": True, "patch_bias": False, "activation": "quick_gelu"},
        {"qkv_bias": False, "final_norm": "none"},
        {"final_norm": "fc_norm", "pool": "avg"},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_every_variant_gives_features_on_any_grid(
    tiny_spec: VitSpec, changes: dict[str, object], size: tuple[int, int]
) -> None:
    spec = VitSpec.from_json({**tiny_spec.to_json(), **changes})
    weights = random_weights(spec, seed=0)
    assert {n: tuple(t.shape) for n, t in weights.tensors.items()} == shapes(spec)
    features = build_backbone(weights)(torch.rand(2, 3, *size))
    assert features.cls.shape == (2, 48)
    assert features.patches.shape == (2, size[0] // 16, size[1] // 16, 48)
    assert features.registers.shape == (2, spec.register_tokens, 48)
    assert features.cls.isfinite().all()


def test_intermediate_blocks_end_in_the_forward(tiny_weights: VitWeights) -> None:
    backbone = build_backbone(tiny_weights)
    images = torch.rand(2, 3, 64, 64)
    first, last = backbone.blocks(images, [0, 2], norm=True)
    torch.testing.assert_close(last.patches, backbone(images).patches, rtol=0, atol=0)
    assert not torch.allclose(first.patches, last.patches)
    maps = backbone.pyramid(images, [0, 2])
    assert [m.shape for m in maps] == [(2, 48, 4, 4)] * 2
    bare = backbone.blocks(images, [2], norm=False)[0]
    torch.testing.assert_close(maps[1], bare.patches.permute(0, 3, 1, 2), rtol=0, atol=0)


def test_statistics_of_the_specification_are_applied_inside(tiny_weights: VitWeights) -> None:
    images = torch.rand(2, 3, 64, 64)
    shifted = tiny_weights.with_spec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    plain, other = build_backbone(tiny_weights), build_backbone(shifted)
    by_hand = plain.normalise.inverse((images - 0.5) / 0.5)
    torch.testing.assert_close(other(images).cls, plain(by_hand).cls, rtol=1e-5, atol=1e-5)


def test_an_image_that_patches_do_not_tile_is_refused(tiny_weights: VitWeights) -> None:
    with pytest.raises(UserError, match="60x64 do not divide into patches of 16"):
        build_backbone(tiny_weights)(torch.rand(1, 3, 60, 64))


@pytest.mark.parametrize("rule", ["bicubic", "bicubic-antialias", "bicubic-offset"])
def test_position_rules_keep_prefix_and_identity(rule: PositionRule) -> None:
    table = torch.randn(1, 1 + 16, 8)
    assert resize_table(table, grid=(4, 4), to=(4, 4), prefix=1, rule=rule) is table
    out = resize_table(table, grid=(4, 4), to=(6, 3), prefix=1, rule=rule)
    assert out.shape == (1, 1 + 18, 8)
    assert torch.equal(out[:, 0], table[:, 0])


def test_loading_is_strict_in_both_directions(tiny_weights: VitWeights, tiny_spec: VitSpec) -> None:
    short = {k: v for k, v in tiny_weights.tensors.items() if k != "blocks.1.norm1.bias"}
    with pytest.raises(UserError, match=r"missing blocks.1.norm1.bias \(48,\)"):
        build_backbone(replace(tiny_weights, tensors=short))
    extra = {**tiny_weights.tensors, "decoder.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="unexpected decoder.weight"):
        build_backbone(replace(tiny_weights, tensors=extra))
    bent = {**tiny_weights.tensors, "cls_token": torch.zeros(1, 2, 48)}
    assert mismatches(tiny_spec, bent) == ["cls_token has shape (1, 2, 48), expected (1, 1, 48)"]
    with pytest.raises(UserError, match="nothing fills head.weight"):
        load_encoder(build_vit(tiny_spec, num_classes=3, pool="token"), tiny_weights)


def test_the_random_twin_depends_on_the_seed_alone(tiny_spec: VitSpec) -> None:
    one, same, other = (random_weights(tiny_spec, seed=s) for s in (1, 1, 2))
    assert one.digest == same.digest != other.digest
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(one.tensors[name], same.tensors[name])
    assert not torch.equal(one.tensors[name], other.tensors[name])


def test_a_specification_survives_json(tiny_spec: VitSpec) -> None:
    assert VitSpec.from_json(tiny_spec.to_json()) == tiny_spec
    with pytest.raises(UserError, match="unknown key 'widht'"):
        VitSpec.from_json({**tiny_spec.to_json(), "widht": 3})
