"""The 36-epoch Mask R-CNN of Swin and ConvNeXt: recipe, pictures, rates and heads as published."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")

from detectron2.data import transforms as T
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead

from mimbench.benchmarks.manifest import load_manifest
from mimbench.networks.levels import LevelSpec, random_levels
from mimbench.networks.module import ModuleSpec
from mimbench.system.config import from_mapping
from mimbench.system.generators import seeded
from mimbench.task import Machine
from tests.support.tiny_levels import PLAIN_CONVNEXT, SWIN
from transfer.detection import data, fpn, loading, recipe
from transfer.detection.detector import Edges
from transfer.detection.edges import EdgeCrop, VisibleEdge
from transfer.detection.fpn_recipes import group_of, published
from transfer.detection.order import Positioned, Reader

BENCHMARK = "coco-fpn-levels-36"


def configured(profile: Any = "paper", **changes: Any) -> fpn.Config:
    _, said = load_manifest().recipe(BENCHMARK, profile)
    config = from_mapping(fpn.Config, {**said, "data": "."}, BENCHMARK)
    return replace(config, **changes)


def tiny(**changes: Any) -> fpn.Config:
    return configured(
        "demo",
        pyramid_channels=16,
        box_width=16,
        machine=Machine(device="cpu", workers=0),
        **changes,
    )


def named(model: str, architecture: str = "swin_tiny_patch4_window7_224") -> LevelSpec:
    return LevelSpec(architecture=architecture, name=model)


def test_the_schedule_is_mmdetections_three_times() -> None:
    config = configured()
    optimum, remark = fpn.settled(named("Swin-T"), config)
    assert (optimum.lr, optimum.drop_path, optimum.layer_decay, remark) == (1e-4, 0.2, 1.0, "")
    plan = fpn.plan(config, optimum)
    assert plan.steps == 36 * 7330
    rates = recipe.instantiate(recipe.build_schedule_config(plan))

    def at(step: int) -> float:
        return rates(step / plan.steps)

    # epoch 27 is the first at a tenth, epoch 33 at a hundredth
    drops = [27 * 7330, 33 * 7330]
    assert [round(at(step), 6) for step in (drops[0] - 2, drops[0] + 1)] == [1.0, 0.1]
    assert [round(at(step), 6) for step in (drops[1] - 2, drops[1] + 1)] == [0.1, 0.01]
    assert at(0) == pytest.approx(0.001)
    assert at(250) == pytest.approx(0.5005, abs=2e-3)
    assert at(501) == 1.0
    assert config.batch == 16
    assert config.most_at_once == 1


@pytest.mark.parametrize(
    ("model", "architecture", "values", "said"),
    [
        ("Swin-T", "swin_tiny_patch4_window7_224", (1e-4, 0.2, 1.0, 1), ""),
        ("ConvNeXt-T", "convnext_tiny", (1e-4, 0.4, 0.95, 3), ""),
        ("ConvNeXt-S", "convnext_small", (2e-4, 0.6, 0.7, 3), "in Cascade Mask R-CNN"),
        ("ConvNeXt-B", "convnext_base", (2e-4, 0.7, 0.8, 3), "in Cascade Mask R-CNN"),
        ("ConvNeXtV2-T", "convnextv2_tiny", (1e-4, 0.4, 0.95, 3), "those of ConvNeXt-T"),
        ("Swin-B", "swin_base_patch4_window7_224", (1e-4, 0.2, 1.0, 1), "those of Swin-T"),
        ("ResNet-50", "resnet50", (1e-4, 0.2, 1.0, 1), "those of Swin-T"),
    ],
)
def test_every_family_has_its_published_values_or_says_whose(
    model: str, architecture: str, values: tuple[float, ...], said: str
) -> None:
    found, remark = published(named(model, architecture))
    assert (found.lr, found.drop_path, found.layer_decay, found.joined) == values
    assert said in remark
    assert bool(said) == bool(remark)


def test_a_module_has_neither_dropped_paths_nor_layer_decay() -> None:
    spec = ModuleSpec(model="Mine", embed_dim=8, image_size=(32, 32))
    found, remark = fpn.settled(spec, configured())
    assert (found.drop_path, found.layer_decay) == (0.0, 1.0)
    assert "a module of the user's own" in remark


def convnexts_group(name: str, groups: int) -> int:
    """ConvNeXt's own rule (object_detection, `get_num_layer_layer_wise`), on timm's names."""
    part = name.split(".")
    if part[0] == "stem":
        return 0
    stage = int(part[1])
    if stage in (0, 1):
        return stage + 1
    if stage == 3:
        return groups
    return 3 + (0 if part[2] == "downsample" else int(part[3]) // 3)


@pytest.mark.parametrize(("depths", "groups"), [((3, 3, 9, 3), 6), ((3, 3, 27, 3), 12)])
def test_layer_decay_has_convnexts_groups(depths: tuple[int, ...], groups: int) -> None:
    spec = LevelSpec(
        architecture="convnext_tiny", options={"depths": list(depths), "dims": [8, 8, 8, 8]}
    )
    for name in spec.shapes():
        if name.startswith(("stem", "stages")):
            found = group_of(spec.layer_of(name), spec.layers, 3)
            assert groups + 1 - found == convnexts_group(name, groups), name
    assert group_of(spec.layers - 1, spec.layers, 3) == 0


def test_rates_and_weight_decay_of_convnext() -> None:
    config = tiny(learning_rate=None, drop_path=None)
    design = fpn.design(random_levels(PLAIN_CONVNEXT, 0), config, classes=3)
    design.optimizer.params.model = design.model
    names = {id(p): n for n, p in design.model.named_parameters()}
    groups = recipe.instantiate(design.optimizer).param_groups
    found = {names[id(p)]: g for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    trunk = "backbone.bottom_up.body."
    # four blocks joined by threes: stem 0, blocks 1 to 3, block 4, the rest
    assert found[trunk + "stem.0.weight"]["lr"] == pytest.approx(1e-4 * 0.95**3)
    assert found[trunk + "stages.2.blocks.0.conv_dw.weight"]["lr"] == pytest.approx(1e-4 * 0.95**2)
    assert found[trunk + "stages.3.blocks.0.conv_dw.weight"]["lr"] == pytest.approx(1e-4 * 0.95)
    for name, group in found.items():
        if not name.startswith(trunk):
            assert group["lr"] == 1e-4
        vector = design.model.get_parameter(name).ndim == 1
        assert group["weight_decay"] == (0.0 if vector or name.endswith("bias") else 0.05), name


def test_heads_are_the_standard_ones() -> None:
    design = fpn.design(random_levels(SWIN, 0), tiny(), classes=3)
    model: Any = design.model
    box = model.roi_heads.box_head
    assert isinstance(box, FastRCNNConvFCHead)
    layers = [m for m in box.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [type(m) for m in layers] == [nn.Linear, nn.Linear]
    assert model.backbone.padding_constraints == {"square_size": 0}
    assert model.backbone.size_divisibility == 32
    heads = [model.backbone.fpn_lateral2, model.roi_heads.mask_head, model.proposal_generator]
    norms = [m for part in heads for m in part.modules() if "Norm" in type(m).__name__]
    assert not norms
    assert isinstance(model.proposal_generator.rpn_head.conv, nn.Conv2d)
    assert not any("no published row" in note for note in design.plan.notes)
    # every level still passes a fresh norm, as in both families' code
    assert len(model.backbone.bottom_up.norms) == 4


def pictures(coco: Path, config: fpn.Config) -> Positioned:
    split = data.inspect(coco / "annotations/instances_train2017.json", coco / "train2017")
    name = data.register(split)
    sets = loading.build_data_config(config, {"train": name, "val": name}, bitmask=False)
    records = recipe.instantiate(sets.train.dataset)
    return Positioned(records, Reader(recipe.instantiate(sets.train.mapper)), seed=0)


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(6, 5) / "coco"


def test_pictures_are_detectron2s_own_recipe(coco: Path) -> None:
    """The same draws through the list of transforms that detectron2's MViTv2 project has."""
    edges = Edges(short=(48, 56, 64), longest=120, before=(40, 50), crop=(24, 40))
    ours = pictures(coco, tiny(edges=edges, flip=0.5))
    theirs = T.AugmentationList(
        [
            T.RandomFlip(prob=0.5, horizontal=True),
            T.RandomApply(
                T.AugmentationList(
                    [
                        T.ResizeShortestEdge([40, 50], sample_style="choice", max_size=120),
                        T.RandomCrop("absolute_range", (24, 40)),
                    ]
                ),
                prob=0.5,
            ),
            T.ResizeShortestEdge([48, 56, 64], sample_style="choice", max_size=120),
        ]
    )
    from detectron2.data import detection_utils

    from mimbench.system.seeds import sequence_seed

    shapes = set()
    for position in range(40):
        index = position % len(ours)
        image = detection_utils.read_image(ours.records[index]["file_name"], format="RGB")
        given: Any = T.AugInput(image)
        with seeded(sequence_seed(0, position)):
            theirs(given)
        found = ours[(position, index)]
        assert np.array_equal(found["image"].permute(1, 2, 0).numpy(), given.image)
        shapes.add(tuple(found["image"].shape[1:]))
        boxes = found["instances"].gt_boxes.tensor
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= found["image"].shape[2]).all()
    assert {min(shape) for shape in shapes} == {48, 56, 64}
    # squares stay squares unless they were cropped
    assert 8 < sum(h != w for h, w in shapes) <= 40


def test_boxes_are_those_of_the_annotation_not_of_the_mask(coco: Path) -> None:
    """mmdetection cuts boxes at the crop; only large-scale jitter computes them from masks anew."""
    sets = loading.build_data_config(tiny(), {"train": "x", "val": "y"}, bitmask=False)
    assert not sets.train.mapper.recompute_boxes
    [plain] = sets.val.mapper.augmentations
    assert (plain.short_edge_length, plain.max_size) == (96, 160)
    published_sets = loading.build_data_config(
        configured(), {"train": "x", "val": "y"}, bitmask=False
    )
    [plain] = published_sets.val.mapper.augmentations
    assert (plain.short_edge_length, plain.max_size) == (800, 1333)
    edges = published_sets.train.mapper.augmentations
    assert list(edges[2].short_edge_length) == list(range(480, 801, 32))
    assert list(edges[1].tfm_or_aug.augs[0].short_edge_length) == [400, 500, 600]
    assert tuple(edges[1].tfm_or_aug.augs[1].crop_size) == (384, 600)
    assert edges[1].prob == 0.5


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1)])
def test_of_a_thin_picture_a_pixel_is_left(shape: tuple[int, int]) -> None:
    """detectron2's own resize rounds it to no pixel and fails."""
    picture = np.zeros((*shape, 3), dtype=np.uint8)
    resize = VisibleEdge([800], sample_style="choice", max_size=1333)
    found = resize.get_transform(picture).apply_image(picture)
    assert min(found.shape[:2]) == 1
    crop = EdgeCrop("absolute_range", (384, 600)).get_transform(picture)
    assert min(crop.apply_image(picture).shape[:2]) == min(shape)
    bare = T.ResizeShortestEdge([800], sample_style="choice", max_size=1333)
    with pytest.raises((ValueError, AssertionError)):
        bare.get_transform(picture).apply_image(picture)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"short": ()}, "short is"),
        ({"before": (2000,)}, "before is"),
        ({"crop": (600, 384)}, "smaller side first"),
        ({"share": 1.5}, "share is"),
    ],
)
def test_edges_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Edges(**changes)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="resize belongs to large-scale jitter"):
        tiny(resize=(0.5, 1.0))
    with pytest.raises(ValueError, match="without box_convs"):
        tiny(box_convs=1)


def test_memory_is_that_of_the_larger_picture() -> None:
    square = replace(configured(edges=None), machine=Machine(device="cpu", max_batch=1))
    crowded = configured(machine=Machine(device="cpu", max_batch=8))
    alone = configured(machine=Machine(device="cpu", max_batch=1))
    spec = random_levels(SWIN, 0).spec
    assert fpn.footprint(spec, alone, 0).memory > fpn.footprint(spec, square, 0).memory
    assert fpn.footprint(spec, crowded, 0).memory == fpn.footprint(spec, alone, 0).memory


def test_a_run_trains_scores_and_resumes_its_numbers(coco: Path, tmp_path: Path) -> None:
    config = tiny(data=coco, images=8, batch=4, warmup=0.1)
    result = fpn.run(random_levels(SWIN, 0), config, tmp_path / "run")
    assert result.notes["micro_batch"] == 1
    assert result.notes["micro_steps"] == 4
    assert 0 <= result.metrics["box_ap"] <= 100
    more = replace(config, machine=replace(config.machine, max_batch=4))
    again = fpn.run(random_levels(SWIN, 0), more, tmp_path / "again")
    assert again.metrics == result.metrics
    first, second = (
        torch.load(tmp_path / name / "checkpoints/model_final.pth", weights_only=True)["model"]
        for name in ("run", "again")
    )
    assert all(torch.equal(first[n], second[n]) for n in first)
