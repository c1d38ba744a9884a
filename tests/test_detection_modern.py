"""Modern ViTs inside ViTDet: the reference's features without windows and with them, and what must show."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2")

from mimbench.checkpoints.files import read_vit
from mimbench.sample import generate
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from transfer.detection import convert as conversion
from transfer.detection import recipe, vitdet
from transfer.detection.attention import RecomputedModernBlock
from transfer.detection.convert import VitDetTensors, convert
from transfer.detection.modern_attention import BiasedAttention, RotaryAttention
from transfer.detection.protocol import Config, plan
from transfer.detection.trunk import ModernBlock, decay_rate
from transfer.detection.vitdet import run

MODERN = ["dinov3", "dinov3_swiglu", "eva02", "clip", "dinov2_swiglu_reg", "beit", "capi"]
BOTH = [(n, s) for n in MODERN for s in ("square", "wide") if (n, s) != ("beit", "wide")]
WINDOWED = [(n, s) for n, s in BOTH if s == "square" or n != "clip"]
DINOV3 = VitSpec(
    embed_dim=48,
    depth=2,
    num_heads=3,
    mlp_dim=96,
    patch_size=8,
    grid=(16, 16),
    register_tokens=4,
    position="rotary",
    layer_scale=True,
    norm_eps=1e-5,
)


@pytest.fixture(autouse=True)
def any_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk alone needs no pyramid, so that patches of 14 stay as they are."""
    monkeypatch.setattr(conversion, "target_patch", lambda spec, wanted: spec.patch_size)


def settings(side: int, patch: int, **changes: Any) -> Config:
    return Config(
        data=Path(),
        image_size=side * patch,
        window=2,
        relative_positions=False,
        precision="fp32",
        **{"global_blocks": 1, **changes},
    )


def trunk(weights: VitWeights, side: int, windows: dict[int, int], **changes: Any) -> Any:
    """Return the trunk as the recipe builds it, filled strictly, and what was converted."""
    spec = weights.spec
    config = settings(side, spec.patch_size, **changes)
    kept = config.prefix == "kept"
    converted = convert(weights, patch_size=None, side=side, windows=windows, prefix=kept)
    net = recipe.official("common/models/mask_rcnn_vitdet.py", "model").backbone.net
    planned = replace(
        plan(config, spec),
        global_blocks=tuple(i for i in range(spec.depth) if i not in windows),
        drop_path=0.0,
    )
    recipe._edit_vit(net, config, planned, spec, converted)
    vit = recipe.instantiate(net).eval()
    own = vit.state_dict()
    assert own.keys() - converted.tensors.keys() <= {n for n in own if "rel_pos" in n}
    vit.load_state_dict({**own, **converted.tensors})
    return vit, converted


def golden_weights(golden: Path, name: str) -> tuple[VitWeights, dict[str, Tensor]]:
    with np.load(golden / f"backbone_{name}.npz") as file:
        wanted = {key: torch.from_numpy(file[key]) for key in file.files}
    return read_vit(golden / f"backbone_{name}.pth", num_heads=3), wanted


def every_block(vit: Any, images: Tensor) -> list[Tensor]:
    """Return (b, h, w, d) after each block."""
    found: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, a, out: found.append(out)) for b in vit.blocks]
    with torch.no_grad():
        vit(images)
    for hook in hooks:
        hook.remove()
    return found


def check(vit: Any, wanted: dict[str, Tensor], shape: str, kind: str) -> float:
    """Return the largest difference from the reference over all blocks."""
    blocks = every_block(vit, wanted[f"{shape}/images"])
    scale = 0.0
    for i, found in enumerate(blocks):
        if f"{shape}/{kind}/block_{i}" in wanted:
            scale = max(scale, float((found - wanted[f"{shape}/{kind}/block_{i}"]).abs().max()))
    return scale


@pytest.mark.parametrize(("name", "shape"), BOTH)
def test_without_windows_the_trunk_is_the_classifier(name: str, shape: str, golden: Path) -> None:
    """LayerScale is folded, which rounds: the tolerance is 1e-5 absolute."""
    weights, wanted = golden_weights(golden, name)
    vit, _ = trunk(weights, 4, {})
    assert check(vit, wanted, shape, "patches_only") < 1e-5


@pytest.mark.parametrize(("name", "shape"), WINDOWED)
def test_windows_hold_what_the_reference_holds(name: str, shape: str, golden: Path) -> None:
    """Where the border cuts a window, rotary and biased attention mask the padding."""
    weights, wanted = golden_weights(golden, name)
    if shape == "wide" and not weights.spec.is_rotary:
        pytest.skip("detectron2 attends to zero padding under an absolute table, as published")
    windows = dict.fromkeys(wanted[f"{shape}/windowed/blocks"].tolist(), 2)
    vit, _ = trunk(weights, 4, windows)
    assert check(vit, wanted, shape, "windowed") < 1e-5


def last_map(vit: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        [found] = vit(images).values()
    return found.permute(0, 2, 3, 1)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("name", ["dinov3", "eva02", "clip", "dinov2_swiglu_reg", "capi"])
def test_prefix_tokens_that_are_kept_give_the_whole_classifier(
    name: str, shape: str, golden: Path
) -> None:
    """Without windows every token attends, as in the reference: class token, registers and patches."""
    weights, wanted = golden_weights(golden, name)
    vit, converted = trunk(weights, 4, {}, prefix="kept")
    images = wanted[f"{shape}/images"]
    last = weights.spec.depth - 1
    torch.testing.assert_close(
        last_map(vit, images), wanted[f"{shape}/block_{last}/patches"], atol=1e-5, rtol=0
    )
    dropped, _ = trunk(weights, 4, {})
    assert (last_map(vit, images) - last_map(dropped, images)).abs().max() > 1e-3
    assert all(n.startswith("norm.") for n in converted.placeless)
    assert f"{weights.spec.prefix_tokens} prefix tokens kept" in converted.report


def test_kept_prefix_tokens_wait_while_windowed_blocks_run(golden: Path) -> None:
    weights, wanted = golden_weights(golden, "dinov3")
    images = wanted["square/images"]
    vit, _ = trunk(weights, 4, {0: 2}, prefix="kept")
    dropped, _ = trunk(weights, 4, {0: 2})
    # the windowed first block is the same with and without them; what follows is not
    torch.testing.assert_close(every_block(vit, images)[0], every_block(dropped, images)[0])
    assert (last_map(vit, images) - last_map(dropped, images)).abs().max() > 1e-3
    vit.train()(images)["last_feat"].square().mean().backward()
    assert vit.prefix_tokens.grad.abs().max() > 0
    assert decay_rate("backbone.net.prefix_tokens", num_layers=2, lr_decay_rate=0.5) == 0.125


def test_prefix_tokens_that_cannot_be_kept_are_refused(golden: Path) -> None:
    weights, _ = golden_weights(golden, "beit")
    with pytest.raises(UserError, match="relative positions of their own"):
        convert(weights, patch_size=None, side=4, windows={}, prefix=True)
    clip, _ = golden_weights(golden, "clip")
    with pytest.raises(UserError, match="add relative_positions: false"):
        vitdet.design(
            clip, replace(settings(4, 16, prefix="kept"), relative_positions=True), classes=3
        )


@pytest.mark.parametrize("name", MODERN)
def test_every_tensor_has_its_place_or_is_named(name: str, golden: Path) -> None:
    weights, _ = golden_weights(golden, name)
    _, converted = trunk(weights, 4, {})
    assert converted.used + len(converted.placeless) == len(weights.tensors)
    assert f"{converted.used} of {converted.used} backbone tensors used" in converted.report
    assert all(n.startswith(("cls_token", "reg_token", "norm.")) for n in converted.placeless)


FAULTS = {
    "pairs of the other family": ("eva02", "square", {"rotation": "centred"}),
    "rows and columns exchanged": ("dinov3", "wide", {}),
    "gate and value exchanged": ("dinov3_swiglu", "square", {}),
    "no norm before the blocks": ("clip", "square", {"pre_norm": False}),
    "LayerScale left out": ("dinov3", "square", {}),
    "step of another grid": ("eva02", "square", {"rotation_grid": 8}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_shows(fault: str, golden: Path) -> None:
    name, shape, change = FAULTS[fault]
    weights, wanted = golden_weights(golden, name)
    tensors = dict(weights.tensors)
    if fault == "gate and value exchanged":
        tensors |= {n: torch.cat(t.chunk(2)[::-1]) for n, t in tensors.items() if "mlp.fc1" in n}
    if fault == "LayerScale left out":
        tensors |= {n: torch.ones_like(t) for n, t in tensors.items() if n.endswith("gamma")}
    if fault == "no norm before the blocks":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("norm_pre")}
    vit, _ = trunk(replace(weights, tensors=tensors).with_spec(**change), 4, {})
    if fault == "rows and columns exchanged":
        wanted[f"{shape}/images"] = wanted[f"{shape}/images"].transpose(2, 3)
        vit.patch_embed.proj.weight.data = vit.patch_embed.proj.weight.data.transpose(2, 3)
        found = every_block(vit, wanted[f"{shape}/images"])[-1].transpose(1, 2)
        assert (found - wanted[f"{shape}/patches_only/block_2"]).abs().max() > 1e-3
        return
    assert check(vit, wanted, shape, "patches_only") > 1e-3


@pytest.mark.parametrize("name", ["dinov3", "eva02"])
def test_in_a_window_only_the_step_of_the_rotation_counts(name: str, golden: Path) -> None:
    weights, _ = golden_weights(golden, name)
    patch = weights.spec.patch_size
    weights = replace(
        weights, tensors={n: t for n, t in weights.tensors.items() if n != "pos_embed"}
    )
    weights = weights.with_spec(position="rotary", position_rows_for_prefix=True)
    vit, _ = trunk(weights, 8, dict.fromkeys(range(3), 2))
    picture = torch.zeros(1, 3, 8 * patch, 8 * patch)
    content = torch.randn(1, 3, 2 * patch, 2 * patch, generator=torch.Generator().manual_seed(0))
    corner, middle = picture.clone(), picture.clone()
    corner[:, :, : 2 * patch, : 2 * patch] = content
    middle[:, :, 4 * patch : 6 * patch, 2 * patch : 4 * patch] = content
    first = every_block(vit, corner)[-1][:, :2, :2]
    moved = every_block(vit, middle)[-1][:, 4:6, 2:4]
    torch.testing.assert_close(moved, first, atol=1e-5, rtol=0)
    small, _ = trunk(weights, 4, dict.fromkeys(range(3), 2))
    other = every_block(small, corner[:, :, : 4 * patch, : 4 * patch])[-1][:, :2, :2]
    assert (other - first).abs().max() > 1e-2


def test_a_window_may_be_the_picture(golden: Path) -> None:
    """EVA-02's and PE's rule, a named variant: then a window is a classifier of its own size."""
    weights, _ = golden_weights(golden, "dinov3")
    windows = dict.fromkeys(range(3), 2)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (grid, _), (window, _) = (trunk(weights, 4, windows, coordinates=c) for c in ("grid", "window"))
    alone, _ = trunk(weights, 2, {})
    found = every_block(window, images)[-1]
    torch.testing.assert_close(
        found[:, 2:, :2], every_block(alone, images[:, :, 32:, :32])[-1], atol=1e-5, rtol=0
    )
    assert (every_block(grid, images)[-1] - found).abs().max() > 1e-2


def test_tables_of_a_larger_grid_keep_near_offsets(golden: Path) -> None:
    weights, _ = golden_weights(golden, "beit")
    _, converted = trunk(weights, 8, {0: 2})
    name = "blocks.{}.attn.relative_position_bias_table"
    own = weights.tensors[name.format(0)][:-3].unflatten(0, (7, 7))
    assert torch.equal(converted.tensors[name.format(0)].unflatten(0, (3, 3)), own[2:5, 2:5])
    wide = converted.tensors[name.format(1)].unflatten(0, (15, 15))
    torch.testing.assert_close(
        wide[7, 7], weights.tensors[name.format(1)][:-3].unflatten(0, (7, 7))[3, 3]
    )


def test_gradients_reach_what_is_new(golden: Path) -> None:
    for name, part in (
        ("beit", "attn.relative_position_bias_table"),
        ("clip", "norm_pre.weight"),
        ("dinov3_swiglu", "mlp.fc1.weight"),
    ):
        vit, _ = trunk(golden_weights(golden, name)[0], 4, {0: 2})
        vit.train()(torch.randn(1, 3, 64, 64))["last_feat"].square().mean().backward()
        found = [p for n, p in vit.named_parameters() if n.endswith(part)]
        assert found
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in found)


def test_recipe_builds_modern_blocks_with_their_decay(golden: Path) -> None:
    weights, _ = golden_weights(golden, "clip")
    config = replace(settings(8, 16), machine=Machine(recompute=True))
    planned = plan(config, weights.spec)
    converted: VitDetTensors = convert(weights, patch_size=16, side=8)
    lazy = recipe.build_model_config(config, planned, weights.spec, converted, classes=3)
    model = recipe.build_model(lazy, config, seed=0)
    recipe.fill(model, converted)
    assert all(isinstance(b, RecomputedModernBlock) for b in recipe.vit_of(model).blocks)
    optimizer = recipe.build_optimizer_config(config, planned, weights.spec)
    optimizer.params.model = model
    names = {id(p): n for n, p in model.named_parameters()}
    rows = {
        names[id(p)]: (group["lr"] / config.learning_rate, group["weight_decay"])
        for group in recipe.instantiate(optimizer).param_groups
        for p in group["params"]
    }
    decay = planned.layer_decay
    assert rows["backbone.net.norm_pre.weight"] == (pytest.approx(decay**4), 0.0)
    assert rows["backbone.net.blocks.2.mlp.fc1.weight"] == (pytest.approx(decay), 0.1)
    assert rows["backbone.simfp_4.0.weight"][0] == 1.0


def test_kinds_of_attention(golden: Path) -> None:
    for name, kind in (("dinov3", RotaryAttention), ("beit", BiasedAttention)):
        vit, _ = trunk(golden_weights(golden, name)[0], 4, {})
        assert all(isinstance(b, ModernBlock) and isinstance(b.attn, kind) for b in vit.blocks)


def test_a_tiny_dinov3_learns_the_sample_scenes(tmp_path: Path) -> None:
    """Six pictures, learned by heart, as the plain ViT learns them."""
    generate(tmp_path / "s", train_per_class=1, val_per_class=1, train_scenes=6, val_scenes=1)
    config = Config(
        patch_size=None,
        window=8,
        precision="fp32",
        mask_convs=1,
        box_convs=1,
        anchor_scale=4.0,
        proposals=64,
        candidates=100,
        flip=0.0,
        drop_path=0.0,
        eval_every=0,
        machine=Machine(device="cpu", workers=0),
        data=tmp_path / "s/coco",
        val_images="train2017",
        val_json="annotations/instances_train2017.json",
        image_size=128,
        global_blocks=1,
        batch=3,
        images=3 * 60,
        pyramid_channels=32,
        box_width=64,
        regions=32,
        layer_decay=1.0,
        learning_rate=3e-3,
        weight_decay=0.01,
        warmup=0.05,
        drops=(0.8, 0.95),
        resize=(1.0, 1.0),
    )
    weights = random_weights(DINOV3, 0)
    before = run(weights, replace(config, images=3), tmp_path / "before").metrics
    after = run(weights, config, tmp_path / "after").metrics
    assert before["box_ap50"] < 1.0
    assert after["box_ap50"] > 5.0
