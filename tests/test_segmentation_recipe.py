"""The recipe, line by line: what the suite's profiles give for B and L, beside the published table."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mimbench.benchmarks.manifest import load_manifest
from mimbench.system.config import from_mapping
from mimbench.system.errors import UserError
from mimbench.training.optim import plan_batch
from mimbench.vit.weights import VitSpec
from transfer.segmentation import linear, protocol, upernet
from transfer.segmentation.data import DataSource, open_source
from transfer.segmentation.recipe import check_batch, full_config

BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))
LARGE = replace(BASE, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096)
SMALL = replace(BASE, embed_dim=384, num_heads=6, mlp_dim=1536)
TINY = VitSpec(embed_dim=24, depth=4, num_heads=3, mlp_dim=96, patch_size=16, grid=(4, 4))


@pytest.fixture(scope="module")
def ade(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(4, 2) / "ade"


@pytest.fixture(scope="module")
def source(ade: Path) -> DataSource:
    return open_source(upernet.Config(data=ade))


def whole(spec: VitSpec, source: DataSource, **fields: object) -> Config:
    """Return what mmengine gets for the benchmark `ade-upernet-160` in profile `paper`."""
    _, recipe = load_manifest().recipe("ade-upernet-160", "paper", {})
    config = from_mapping(upernet.Config, {**recipe, "data": source.root}, "paper")
    config = replace(config, **fields)
    plan = plan_batch(config.batch, world=8, at_most=64)
    return full_config(spec, config, upernet.model_recipe(spec, config), source, plan)


B_AND_L = pytest.mark.parametrize(
    ("spec", "taps", "width", "depth"),
    [(BASE, [3, 5, 7, 11], 768, 12), (LARGE, [7, 11, 15, 23], 1024, 24)],
)


@B_AND_L
def test_paper_data_equals_the_published_table(
    spec: VitSpec, taps: list[int], width: int, depth: int, source: DataSource
) -> None:
    cfg = whole(spec, source)
    assert cfg.train_dataloader.batch_size == 2  # on 8 processes: 16
    assert cfg.train_cfg.max_iters == 160_000
    assert cfg.train_cfg.val_interval == 16_000
    steps = {step.type: step for step in cfg.train_dataloader.dataset.dataset.pipeline}
    assert list(steps) == [
        "LoadImageFromFile", "LoadAnnotations", "SettleLabels", "RandomResize", "RandomCrop",
        "RandomFlip", "PhotoMetricDistortion", "PackSegInputs",
    ]  # fmt: skip
    assert cfg.train_dataloader.dataset.dataset.type == "ADE20KDataset"
    assert cfg.train_dataloader.dataset.dataset.reduce_zero_label is True
    assert steps["RandomResize"].scale == (2048, 512)
    assert steps["RandomResize"].ratio_range == (0.5, 2.0)
    assert steps["RandomResize"].keep_ratio is True
    assert steps["RandomCrop"].crop_size == (512, 512)
    assert steps["RandomCrop"].cat_max_ratio == 0.75
    assert steps["RandomFlip"].prob == 0.5
    pre = cfg.model.data_preprocessor
    assert pre.mean == [123.675, 116.28, 103.53]
    assert pre.std == [58.395, 57.12, 57.375]
    assert (pre.bgr_to_rgb, pre.pad_val, pre.seg_pad_val, pre.size) == (True, 0, 255, (512, 512))


@B_AND_L
def test_paper_optimiser_equals_the_published_table(
    spec: VitSpec, taps: list[int], width: int, depth: int, source: DataSource
) -> None:
    cfg = whole(spec, source)
    optimizer = cfg.optim_wrapper
    assert optimizer.type == "AmpOptimWrapper"
    assert (optimizer.dtype, optimizer.loss_scale) == ("float16", "dynamic")
    assert optimizer.optimizer == {
        "type": "AdamW", "lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.05,
    }  # fmt: skip
    assert optimizer.constructor == "LearningRateDecayOptimizerConstructor"
    assert optimizer.paramwise_cfg.decay_rate == 0.65
    assert optimizer.paramwise_cfg.num_layers == depth
    warmup, poly = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.end) == ("LinearLR", 1e-6, 1_500)
    assert (poly.type, poly.power, poly.eta_min) == ("PolyLR", 1.0, 0.0)
    assert (poly.begin, poly.end) == (1_500, 160_000)


@B_AND_L
def test_paper_model_equals_the_published_table(
    spec: VitSpec, taps: list[int], width: int, depth: int, source: DataSource
) -> None:
    model = whole(spec, source).model
    backbone = model.backbone
    assert backbone.type == "MAE"
    assert backbone.img_size == (512, 512)
    assert backbone.out_indices == taps
    assert (backbone.embed_dims, backbone.num_layers) == (width, depth)
    assert (backbone.drop_path_rate, backbone.init_values) == (0.1, 1.0)
    assert backbone.norm_cfg == {"type": "LN", "eps": 1e-6}
    assert "final_norm" not in backbone
    assert model.neck == {
        "type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5],
    }  # fmt: skip
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert (head.type, head.channels, head.in_channels) == ("UPerHead", width, [width] * 4)
    assert (head.pool_scales, head.dropout_ratio, head.num_classes) == ((1, 2, 3, 6), 0.1, 150)
    assert head.norm_cfg.type == "SyncBN"
    assert head.loss_decode.loss_weight == 1.0
    assert (auxiliary.type, auxiliary.in_index, auxiliary.channels) == ("FCNHead", 2, 256)
    assert (auxiliary.num_convs, auxiliary.loss_decode.loss_weight) == (1, 0.4)


@B_AND_L
def test_paper_test_equals_the_published_table(
    spec: VitSpec, taps: list[int], width: int, depth: int, source: DataSource
) -> None:
    cfg = whole(spec, source)
    assert cfg.model.test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (341, 341)}
    test = [step.type for step in cfg.val_dataloader.dataset.pipeline]
    assert test[1:3] == ["Resize", "LoadAnnotations"]  # labels are never resized
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (2048, 512)


def test_only_the_sizes_that_were_published_go_without_a_remark() -> None:
    notes = {
        (family, name): upernet.model_recipe(spec, upernet.Config(data=Path(), family=family)).notes
        for family in ("mae", "ibot")
        for name, spec in {"S": SMALL, "B": BASE, "L": LARGE}.items()
    }
    assert notes["mae", "B"] == ()
    assert "no learning rate, layer decay and drop path are published" in notes["mae", "L"][0]
    assert "ViT-S" in notes["mae", "S"][0]
    assert all("published" not in " ".join(notes["ibot", name]) for name in "SB")
    assert "are published for ibot at ViT-L" in notes["ibot", "L"][0], "no source has values for it"
    for family in ("mae", "ibot"):
        borrowed = upernet.model_recipe(LARGE, upernet.Config(data=Path(), family=family))
        assert "values of" in borrowed.unpublished, "no published row is subtracted from B's recipe"


@pytest.mark.parametrize(
    ("family", "spec", "expected"),
    [
        ("ibot", SMALL, (3e-5, 0.9, 0.1)),
        ("ibot", BASE, (8e-5, 0.65, 0.1)),
        ("beit", BASE, (7e-4, 0.65, 0.1)),
        ("beit", LARGE, (2e-5, 0.95, 0.2)),
    ],
)
def test_other_families_take_their_own_values(
    family: protocol.Family, spec: VitSpec, expected: tuple[float, float, float]
) -> None:
    found = upernet.model_recipe(spec, upernet.Config(data=Path(), family=family))
    assert (found.lr, found.layer_decay, found.backbone["drop_path_rate"]) == expected
    assert found.tap_norm == (family == "ibot")
    assert found.kind == ("TimmMAE" if family == "ibot" else "MAE")


def test_override_replaces_a_published_value_and_its_remark() -> None:
    config = upernet.Config(data=Path(), lr=3e-4, layer_decay=0.8, drop_path=0.2)
    found = upernet.model_recipe(LARGE, config)
    assert (found.lr, found.layer_decay, found.notes) == (3e-4, 0.8, ())


def test_printed_recipe_is_complete(source: DataSource, tmp_path: Path) -> None:
    cfg = whole(BASE, source)
    file = tmp_path / "printed.py"
    file.write_text(cfg.pretty_text)
    read = Config.fromfile(file)
    assert read.pretty_text == cfg.pretty_text
    assert "_base_" not in cfg.pretty_text


def test_multiscale_test_never_goes_below_the_window(source: DataSource) -> None:
    cfg = whole(BASE, source, multiscale=protocol.RATIOS)
    scales, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [step.scale for step in scales] == [
        (2048, 512), (2048, 512), (2048, 512), (2560, 640), (3072, 768), (3584, 896),
    ]  # fmt: skip
    assert [step.prob for step in flips] == [0.0, 1.0]


def linear_recipe(name: str, ade: Path) -> linear.Config:
    _, recipe = load_manifest().recipe(name, "paper", {})
    return from_mapping(linear.Config, {**recipe, "data": ade}, name)


def test_linear_recipes(ade: Path) -> None:
    forty = linear_recipe("ade-linear-40", ade)
    found = linear.model_recipe(BASE, forty)
    assert (forty.iterations, forty.batch, forty.warmup) == (40_000, 16, 1_500)
    assert (found.lr, forty.weight_decay, found.layer_decay) == (1e-3, 1e-3, None)
    assert found.backbone["frozen"] is True
    assert found.backbone["tap_norm"] is True
    assert found.backbone["out_indices"] == [11]
    assert found.decode_head["norm_cfg"]
    assert found.neck is found.auxiliary_head is None
    whole = linear_recipe("ade-linear-160", ade)
    four = linear.model_recipe(BASE, whole)
    assert (whole.iterations, whole.batch, whole.warmup) == (160_000, 16, 1_500)
    assert (four.lr, whole.weight_decay) == (7e-4, 0.05)
    assert four.backbone["out_indices"] == [3, 5, 7, 11]
    assert four.backbone["tap_norm"] is True
    assert four.decode_head["channels"] == 4 * 768
    assert four.decode_head["norm_cfg"] is None


@pytest.mark.parametrize("name", ["ade-upernet-160", "ade-linear-40", "ade-linear-160"])
def test_quick_changes_the_length_alone(name: str) -> None:
    manifest = load_manifest()
    paper, quick = (manifest.recipe(name, profile, {})[1] for profile in ("paper", "quick"))
    assert quick["iterations"] == 20_000
    changed = {key for key in paper.keys() | quick.keys() if paper.get(key) != quick.get(key)}
    assert changed <= {"iterations", "evaluate_every", "multiscale"}


def test_a_batch_norm_that_cannot_train_is_refused() -> None:
    with pytest.raises(UserError, match="needs two or more"):
        check_batch(plan_batch(16, world=1, at_most=1), synchronised=False)
    check_batch(plan_batch(16, world=16, at_most=1), synchronised=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"iterations": 100, "warmup": 100}, "leaves none of 100"),
        ({"iterations": 100, "warmup": 1}, "at least 2"),
    ],
)
def test_impossible_schedules_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        upernet.Config(data=Path(), **fields)


def test_too_shallow_a_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="at least four blocks, this backbone has 3"):
        protocol.tap_blocks(3)
    assert protocol.tap_blocks(4) == (0, 1, 2, 3)
