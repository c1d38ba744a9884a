"""The recipe against the published table, line by line, on the objects that detectron2 builds."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.layers.batch_norm import LayerNorm as ChannelNorm
from detectron2.modeling import GeneralizedRCNN
from detectron2.solver import LRMultiplier
from torch import nn

from mimbench.benchmarks.manifest import load_manifest
from mimbench.checkpoints.vitdet import VitDetTensors
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.vit.weights import VitSpec
from transfer.detection import loading, recipe
from transfer.detection.protocol import Config, column_of, plan, spread
from transfer.detection.pyramid import levels

SHAPES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "H": (1280, 32, 16)}
TABLE = {
    # global blocks, layer decay, drop path, steps, drops
    "S": ((2, 5, 8, 11), 0.7, 0.1, 184_375, (163_889, 177_546)),
    "B": ((2, 5, 8, 11), 0.7, 0.1, 184_375, (163_889, 177_546)),
    "L": ((5, 11, 17, 23), 0.8, 0.4, 184_375, (163_889, 177_546)),
    "H": ((7, 15, 23, 31), 0.9, 0.5, 138_281, (122_916, 133_159)),
}


def spec_of(size: str) -> VitSpec:
    width, depth, heads = SHAPES[size]
    return VitSpec(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=4 * width,
        patch_size=16,
        grid=(14, 14),
    )


def detector(size: str, config: Config, classes: int = 80) -> GeneralizedRCNN:
    """The paper's detector on the meta device: all shapes, no memory."""
    spec = spec_of(size)
    converted = VitDetTensors(
        tensors={}, patch_size=16, table_side=14, class_row=True, used=0, placeless=(), notes=()
    )
    lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=classes)
    # the drop path rates are read off a tensor, which must not be meta
    on_cpu = partial(torch.linspace, device="cpu")
    with torch.device("meta"), patch.object(torch, "linspace", on_cpu):
        return recipe.instantiate(lazy)


@pytest.fixture(scope="module")
def built() -> dict[str, GeneralizedRCNN]:
    config = Config(data=Path())
    return {size: detector(size, config) for size in ("B", "L")}


@pytest.mark.parametrize("size", TABLE)
def test_plan_is_the_published_one(size: str) -> None:
    blocks, layer_decay, drop_path, steps, drops = TABLE[size]
    found = plan(Config(data=Path()), spec_of(size))
    assert found.global_blocks == blocks
    assert found.layer_decay == layer_decay
    assert found.drop_path == drop_path
    assert found.steps == steps
    assert found.schedule == (*drops, steps)
    assert found.decay_all == (size == "H")
    assert found.warmup == 250 / 184_375


def test_twelve_epochs_are_88750_steps_of_16() -> None:
    config = Config(data=Path(), batch=16, images=88_750 * 16)
    found = plan(config, spec_of("B"))
    assert found.steps == 88_750
    # only the length differs from the 100-epoch configuration: the shape of the schedule stays
    assert found.schedule == (163_889, 177_546, 184_375)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("coco-vitdet-100", {}), ("coco-vitdet-12", {"batch": 16, "images": 88_750 * 16})],
)
def test_benchmarks_of_the_suite_are_these_recipes(name: str, changes: dict[str, Any]) -> None:
    manifest = load_manifest()
    dataset, config = manifest.recipe(name, "paper")
    assert dataset == "coco"
    assert from_mapping(Config, {**config, "data": "."}) == Config(data=Path(), **changes)
    # one picture at a time, as published: the mask loss averages over a micro-batch's objects
    assert manifest.limits(name, "paper") == {"max_batch": 1}


def test_sizes_without_official_configuration_say_so() -> None:
    notes = plan(Config(data=Path()), spec_of("S")).notes
    assert notes == ("ViT-S has no official config: it takes B's values",)
    tiny = VitSpec(embed_dim=96, depth=4, num_heads=3, mlp_dim=384, patch_size=8, grid=(4, 4))
    assert column_of(tiny).letter == "S"
    assert any("width 96" in note for note in plan(Config(data=Path()), tiny).notes)


@pytest.mark.parametrize("size", ["B", "L"])
def test_backbone_is_the_published_one(size: str, built: dict[str, GeneralizedRCNN]) -> None:
    model, spec = built[size], spec_of(size)
    vit: Any = recipe.vit_of(model)
    blocks, _, drop_path, _, _ = TABLE[size]
    assert len(vit.blocks) == spec.depth
    assert vit.pos_embed.shape == (1, 197, spec.embed_dim)
    assert vit.pretrain_use_cls_token
    head = spec.embed_dim // spec.num_heads
    for i, block in enumerate(vit.blocks):
        windowed = i not in blocks
        assert block.window_size == (14 if windowed else 0)
        assert block.attn.num_heads == spec.num_heads
        assert block.attn.rel_pos_h.shape == (27 if windowed else 127, head)
        assert block.attn.rel_pos_w.shape == (27 if windowed else 127, head)
        assert block.attn.qkv.bias is not None
        assert block.norm1.eps == block.norm2.eps == 1e-6
        assert isinstance(block.mlp.act, nn.GELU)
        assert not block.use_residual_block
        rate = getattr(block.drop_path, "drop_prob", 0.0)
        assert rate == pytest.approx(drop_path * i / (spec.depth - 1))
    assert not hasattr(vit, "norm")


def test_pyramid_and_heads_are_the_published_ones(built: dict[str, GeneralizedRCNN]) -> None:
    model = built["B"]
    pyramid = model.backbone
    assert pyramid.padding_constraints == {"size_divisiblity": 32, "square_size": 1024}
    assert pyramid._out_feature_strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert {k: v.channels for k, v in pyramid.output_shape().items()} == dict.fromkeys(
        ["p2", "p3", "p4", "p5", "p6"], 256
    )
    rpn = model.proposal_generator
    assert len(list(rpn.rpn_head.conv)) == 2
    assert [a.shape[0] for a in rpn.anchor_generator.cell_anchors] == [3] * 5
    assert rpn.anchor_generator.strides == [4, 8, 16, 32, 64]
    assert rpn.pre_nms_topk == {True: 2000, False: 1000}
    assert rpn.post_nms_topk == {True: 1000, False: 1000}
    assert (rpn.nms_thresh, rpn.batch_size_per_image, rpn.positive_fraction) == (0.7, 256, 0.5)
    roi = model.roi_heads
    assert roi.num_classes == 80
    assert (roi.batch_size_per_image, roi.positive_fraction) == (512, 0.25)
    assert roi.proposal_matcher.thresholds == [-float("inf"), 0.5, float("inf")]
    assert [type(m.norm) for m in roi.box_head.children() if hasattr(m, "norm")] == [
        ChannelNorm
    ] * 4
    assert roi.box_head.fc1.out_features == 1024
    assert not hasattr(roi.box_head, "fc2")
    masks = [m for m in roi.mask_head.children() if getattr(m, "norm", None) is not None]
    assert [type(m.norm) for m in masks] == [ChannelNorm] * 4
    assert roi.mask_pooler.output_size == (14, 14)
    predictor = roi.box_predictor
    assert (predictor.test_score_thresh, predictor.test_nms_thresh) == (0.05, 0.5)
    assert predictor.test_topk_per_image == 100
    assert predictor.cls_score.out_features == 81


def test_input_is_rgb_in_imagenet_statistics() -> None:
    converted = VitDetTensors(
        tensors={}, patch_size=16, table_side=14, class_row=True, used=0, placeless=(), notes=()
    )
    config, spec = Config(data=Path()), spec_of("B")
    lazy = recipe.build_model_config(config, plan(config, spec), spec, converted, classes=80)
    assert lazy.input_format == "RGB"
    assert list(lazy.pixel_mean) == [123.675, 116.28, 103.53]
    assert list(lazy.pixel_std) == [58.395, 57.12, 57.375]
    assert [list(size) for size in lazy.proposal_generator.anchor_generator.sizes] == [
        [32],
        [64],
        [128],
        [256],
        [512],
    ]
    assert list(lazy.proposal_generator.anchor_generator.aspect_ratios) == [0.5, 1.0, 2.0]


def test_augmentation_is_large_scale_jitter_in_the_official_order() -> None:
    sets = loading.build_data_config(Config(data=Path()), {"train": "a", "val": "b"}, bitmask=False)
    mapper = recipe.instantiate(sets.train.mapper)
    flip, scale, crop = mapper.augmentations.augs
    assert (flip.prob, flip.horizontal) == (0.5, True)
    assert (scale.min_scale, scale.max_scale) == (0.1, 2.0)
    assert (scale.target_height, scale.target_width) == (1024, 1024)
    assert (tuple(crop.crop_size), crop.pad) == ((1024, 1024), False)
    assert (mapper.image_format, mapper.recompute_boxes, mapper.instance_mask_format) == (
        "RGB",
        True,
        "polygon",
    )
    plain = recipe.instantiate(sets.val.mapper)
    [resize] = plain.augmentations.augs
    assert (resize.short_edge_length, resize.max_size) == ((1024, 1024), 1024)
    assert plain.image_format == "RGB"
    assert sets.train.dataset.get("filter_empty", True) is True
    assert sets.val.dataset.filter_empty is False


def optimizer_for(size: str, model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    config, spec = Config(data=Path(), **changes), spec_of(size)
    lazy = recipe.build_optimizer_config(config, plan(config, spec), spec)
    lazy.params.model = model
    return recipe.instantiate(lazy)


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("size", ["B", "L"])
def test_optimizer_groups_are_those_of_the_official_config(
    size: str, built: dict[str, GeneralizedRCNN]
) -> None:
    model, depth, decay = built[size], SHAPES[size][1], TABLE[size][1]
    optimizer = optimizer_for(size, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    found = by_name(model, optimizer)
    assert found.keys() == dict(model.named_parameters()).keys()
    torch_norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    assert len(torch_norms) == 4 * depth
    for name, (lr, weight_decay) in found.items():
        level = depth + 1
        if "pos_embed" in name or "patch_embed" in name:
            level = 0
        elif ".net.blocks." in name:
            level = int(name.split(".")[3]) + 1
        assert lr == pytest.approx(1e-4 * decay ** (depth + 1 - level)), name
        exempt = name in torch_norms or name.endswith("pos_embed")
        assert weight_decay == (0.0 if exempt else 0.1), name
    # the pyramid's and heads' norms are detectron2's own class: they do decay, as published
    assert found["backbone.simfp_2.1.weight"][1] == 0.1
    assert found["roi_heads.box_head.conv1.norm.weight"][1] == 0.1
    assert found["backbone.net.blocks.0.attn.rel_pos_h"] == (
        pytest.approx(1e-4 * decay**depth),
        0.1,
    )
    assert found["backbone.net.blocks.0.attn.qkv.bias"][1] == 0.1


def test_huge_exempts_nothing_from_weight_decay() -> None:
    model = detector("H", Config(data=Path()))
    found = by_name(model, optimizer_for("H", model))
    assert {weight_decay for _, weight_decay in found.values()} == {0.1}
    assert found["backbone.net.patch_embed.proj.weight"][0] == pytest.approx(1e-4 * 0.9**33)


@pytest.mark.parametrize(
    ("size", "changes", "steps", "warm", "first", "second"),
    [
        ("B", {}, 184_375, 250, 163_889, 177_546),
        ("H", {}, 138_281, 188, 122_916, 133_159),
        ("B", {"batch": 16, "images": 1_420_000}, 88_750, 121, 78_889, 85_463),
    ],
)
def test_learning_rate_of_every_step(
    size: str, changes: dict[str, Any], steps: int, warm: int, first: int, second: int
) -> None:
    config = Config(data=Path(), **changes)
    found = plan(config, spec_of(size))
    assert found.steps == steps
    schedule = recipe.instantiate(recipe.build_schedule_config(found))
    factor = [
        schedule(i / steps) for i in (0, warm - 1, warm, first - 1, first, second - 1, second)
    ]
    assert factor[0] == pytest.approx(0.001)
    assert factor[1] < 1.0
    assert factor[2:] == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])
    # the optimizer really receives it
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    LRMultiplier(optimizer, schedule, steps, last_iter=-1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"resize": (2.0, 0.1)}, "two rising positive factors"),
        ({"drops": (0.9, 0.8)}, "should rise within 0..1"),
        ({"images": 10}, "less than one batch of 64"),
    ],
)
def test_values_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(data=Path(), **changes)


def test_an_image_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="no multiple of 32, the stride"):
        levels(16, 1000)
    with pytest.raises(UserError, match="global_blocks is 5"):
        spread(5, 4)
