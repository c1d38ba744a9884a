"""The detector as built: any patch, the same weights under all options, pictures as everywhere."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from mimbench.checkpoints.vitdet import VitDetTensors
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, random_weights
from transfer.detection import loading, recipe
from transfer.detection.attention import FusedAttention, RecomputedBlock
from transfer.detection.convert import convert
from transfer.detection.protocol import Config, plan
from transfer.detection.pyramid import levels


@pytest.mark.parametrize(
    ("patch_size", "strides", "names"),
    [
        (16, (4, 8, 16, 32, 64), ("p2", "p3", "p4", "p5", "p6")),
        (8, (4, 8, 16, 32), ("p2", "p3", "p4", "p5")),
        (4, (4, 8, 16), ("p2", "p3", "p4")),
        (32, (8, 16, 32, 64, 128), ("p3", "p4", "p5", "p6", "p7")),
    ],
)
def test_pyramid_levels_follow_the_patch(
    patch_size: int, strides: tuple[int, ...], names: tuple[str, ...]
) -> None:
    found = levels(patch_size, 256)
    assert (found.strides, found.names) == (strides, names)


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_a_detector_over_any_patch_sees_pictures(patch_size: int) -> None:
    spec = VitSpec(
        embed_dim=16, depth=2, num_heads=2, mlp_dim=40, patch_size=patch_size, grid=(4, 4)
    )
    config = small_config(patch_size=None, image_size=64)
    converted = VitDetTensors(
        tensors={},
        patch_size=patch_size,
        table_side=4,
        class_row=True,
        used=0,
        placeless=(),
        notes=(),
    )
    lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=3)
    model = recipe.build_model(lazy, config, seed=0).eval()
    assert model.get_submodule("backbone.net.blocks.0.mlp.fc1").out_features == 40
    with torch.no_grad():
        [found] = model([{"image": torch.zeros(3, 64, 48), "height": 64, "width": 48}])
    assert found["instances"].image_size == (64, 48)


def small_config(**changes: Any) -> Config:
    return Config(
        **{
            "data": Path(),
            "window": 4,
            "global_blocks": 1,
            "pyramid_channels": 16,
            "box_convs": 1,
            "box_width": 16,
            "mask_convs": 1,
            "precision": "fp32",
            **changes,
        }
    )


def test_weights_do_not_depend_on_the_options_nor_on_the_generator_outside() -> None:
    spec = VitSpec(embed_dim=16, depth=2, num_heads=2, mlp_dim=64, patch_size=16, grid=(4, 4))
    converted = VitDetTensors(
        tensors={}, patch_size=16, table_side=4, class_row=True, used=0, placeless=(), notes=()
    )
    models = []
    for config in (
        small_config(image_size=64, attention="stock"),
        small_config(image_size=64, attention="fused", machine=Machine(recompute=True)),
    ):
        lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=3)
        torch.rand(1)
        models.append(recipe.build_model(lazy, config, seed=3))
    stock, optional = (model.state_dict() for model in models)
    assert stock.keys() == optional.keys()
    assert all(torch.equal(stock[name], optional[name]) for name in stock)
    block = recipe.vit_of(models[1]).blocks[0]
    assert isinstance(block, RecomputedBlock)
    assert isinstance(block.attn, FusedAttention)


def test_pictures_are_normalised_as_everywhere_and_padded_with_the_mean_to_a_square(
    tmp_path: Path,
) -> None:
    spec = VitSpec(embed_dim=16, depth=2, num_heads=2, mlp_dim=64, patch_size=16, grid=(4, 4))
    weights = random_weights(spec, 0)
    config = small_config(image_size=64)
    converted = convert(weights, patch_size=16, side=4)
    lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=3)
    model: Any = recipe.build_model(lazy, config, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    mapper = recipe.instantiate(
        loading.build_data_config(config, {"train": "a", "val": "b"}, bitmask=False).val.mapper
    )
    record = {"file_name": str(tmp_path / "x.png"), "height": 48, "width": 64}
    found = model.preprocess_image([mapper(record)]).tensor
    assert found.shape == (1, 3, 64, 64)
    backbone = build_backbone(weights)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    wanted = backbone.normalise(image)
    torch.testing.assert_close(found[:, :, :48], wanted, atol=1e-4, rtol=0)
    assert not found[:, :, 48:].any()


def test_fill_refuses_what_does_not_fit() -> None:
    spec = VitSpec(embed_dim=16, depth=2, num_heads=2, mlp_dim=64, patch_size=16, grid=(4, 4))
    config = small_config(image_size=64)
    converted = convert(random_weights(spec, 0), patch_size=16, side=4)
    lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=3)
    model = recipe.build_model(lazy, config, seed=0)
    recipe.fill(model, converted)
    for name, tensor in converted.tensors.items():
        assert torch.equal(model.state_dict()[f"backbone.net.{name}"], tensor)
    lacking = {k: v for k, v in converted.tensors.items() if k != "blocks.0.norm1.weight"}
    with pytest.raises(UserError, match=r"nothing fills blocks\.0\.norm1\.weight"):
        recipe.fill(model, replace(converted, tensors=lacking))
    strange = {**converted.tensors, "other": torch.zeros(1)}
    with pytest.raises(UserError, match="ViTDet has no other"):
        recipe.fill(model, replace(converted, tensors=strange))
    cut = {**converted.tensors, "pos_embed": torch.zeros(1, 5, 16)}
    with pytest.raises(UserError, match=r"pos_embed has shape \(1, 5, 16\), ViTDet's"):
        recipe.fill(model, replace(converted, tensors=cut))
