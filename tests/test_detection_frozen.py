"""A frozen trunk in ViTDet: nothing of it moves, its features are the backbone's, and a step costs less."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mimbench.benchmarks.manifest import load_manifest
from mimbench.system.config import from_mapping, to_mapping
from mimbench.task import TaskResult
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitSpec, VitWeights, random_weights
from tests.support.detection_run import SPEC, final, small
from transfer.detection import recipe
from transfer.detection.hooks import Checkpoints
from transfer.detection.protocol import Config, plan, resolved
from transfer.detection.vitdet import design, footprint, run

FROZEN: dict[str, Any] = {
    "trunk": "frozen",
    "relative_positions": False,
    "window": 14,
    "global_blocks": 4,
    "drop_path": None,
}


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "coco"


@pytest.fixture(scope="module")
def weights() -> VitWeights:
    return random_weights(SPEC, 0)


@pytest.fixture(scope="module")
def finished(
    coco: Path, weights: VitWeights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TaskResult]:
    out = tmp_path_factory.mktemp("frozen")
    return out, run(weights, small(coco, **FROZEN), out)


def backbone_map(weights: VitWeights, images: Tensor) -> Tensor:
    """Return the patches (b, d, h, w) of the plain backbone without prefix tokens, before the norm."""
    vit = build_backbone(weights).vit
    with torch.no_grad():
        tokens = vit._pos_embed(vit.patch_embed(images))[:, weights.spec.prefix_tokens :]
        for i in range(weights.spec.depth):
            tokens = vit.get_submodule(f"blocks.{i}")(tokens)
    side = images.shape[2] // weights.spec.patch_size
    return tokens.transpose(1, 2).unflatten(2, (side, -1))


def detector(weights: VitWeights, coco: Path, **changes: Any) -> nn.Module:
    return design(weights, small(coco, **{**FROZEN, **changes}), classes=10).model


def pictures(count: int = 2) -> list[dict[str, Any]]:
    """Return a batch with one object on each picture, as detectron2 hands it to a detector."""
    rng = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        objects = Instances((64, 64))
        objects.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
        objects.gt_classes = torch.tensor([3])
        mask = torch.zeros(1, 64, 64, dtype=torch.bool)
        mask[:, 8:40, 8:40] = True
        objects.gt_masks = BitMasks(mask)
        image = torch.randint(0, 256, (3, 64, 64), generator=rng).float()
        out.append({"image": image, "instances": objects, "height": 64, "width": 64})
    return out


def test_training_moves_heads_and_nothing_of_the_trunk(
    finished: tuple[Path, TaskResult], weights: VitWeights, coco: Path
) -> None:
    before = detector(weights, coco).state_dict()
    after = final(finished[0])
    trunk = [name for name in before if name.startswith("backbone.net.")]
    assert len(trunk) == 27
    assert all(torch.equal(before[name], after[name]) for name in trunk)
    rest = [name for name in before if name not in trunk and before[name].numel() > 1]
    moved = [name for name in rest if not torch.equal(before[name], after[name])]
    assert any(name.startswith("backbone.simfp") for name in moved)
    assert len(moved) > 0.8 * len(rest)


@pytest.mark.parametrize("position", ["absolute", "rotary"])
def test_features_are_the_backbones_before_and_after_a_step(position: Any, coco: Path) -> None:
    weights = random_weights(replace(SPEC, position=position, embed_dim=48), 3)
    model = detector(weights, coco)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    vit = recipe.vit_of(model)
    before = vit(images)["last_feat"]
    # test_detection_modern.py holds this trunk against the classifier
    trained = detector(weights, coco, trunk="trained", global_blocks=2, drop_path=0.0)
    torch.testing.assert_close(before, recipe.vit_of(trained.eval())(images)["last_feat"])
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with EventStorage():
        torch.stack(list(model(pictures()).values())).sum().backward()
    optimizer.step()
    assert all(p.grad is None for p in vit.parameters())
    assert torch.equal(vit(images)["last_feat"], before)


def test_the_map_of_a_table_at_its_own_grid_is_the_backbones(coco: Path) -> None:
    weights = random_weights(replace(SPEC, grid=(8, 8)), 2)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for attention in ("stock", "fused"):
        found = recipe.vit_of(detector(weights, coco, attention=attention))(images)["last_feat"]
        torch.testing.assert_close(found, backbone_map(weights, images), rtol=1e-5, atol=1e-5)
        assert not found.requires_grad


def test_a_detector_in_training_leaves_its_trunk_in_evaluation_mode(
    weights: VitWeights, coco: Path
) -> None:
    model = detector(weights, coco).train()
    vit = recipe.vit_of(model)
    assert model.training
    assert model.get_submodule("roi_heads").training
    assert not any(module.training for module in vit.modules())
    assert not any(p.requires_grad for p in vit.parameters())
    assert not any("drop_path" in name and m.extra_repr() for name, m in vit.named_modules())
    assert not any("rel_pos" in name for name in vit.state_dict())
    assert all(block.window_size == 0 for block in vit.blocks)


def test_the_optimizer_holds_pyramid_and_heads_at_one_rate(weights: VitWeights, coco: Path) -> None:
    made = design(weights, small(coco, **FROZEN), classes=10)
    made.optimizer.params.model = made.model
    optimizer = recipe.instantiate(made.optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = dict(made.model.named_parameters())
    assert held == {id(p) for n, p in named.items() if not n.startswith("backbone.net.")}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_a_step_computes_less_than_one_that_trains_the_trunk(
    weights: VitWeights, coco: Path
) -> None:
    def flops(model: nn.Module) -> int:
        model.train()
        with EventStorage(), FlopCounterMode(display=False) as counter:
            torch.stack(list(model(pictures()).values())).sum().backward()
        return counter.get_total_flops()

    deep = random_weights(replace(SPEC, depth=6, embed_dim=96), 0)
    # the same blocks, all of them global, trained
    trained = {"trunk": "trained", "global_blocks": 6, "drop_path": 0.0}
    frozen, whole = flops(detector(deep, coco)), flops(detector(deep, coco, **trained))
    assert frozen < 0.75 * whole


def test_the_run_says_whose_protocol_it_is(finished: tuple[Path, TaskResult]) -> None:
    assert any("our own protocol" in note for note in finished[1].notes["notes"])
    manifest = load_manifest()
    assert "frozen" in manifest.benchmarks["coco-vitdet-frozen"].title
    assert manifest.protocols["coco-vitdet-frozen"].summary.startswith("Our own")
    assert not [r for r in manifest.references if r.protocol == "coco-vitdet-frozen"]


def test_the_entry_is_coco_vitdet_12_but_for_its_trunk() -> None:
    manifest = load_manifest()
    frozen, usual = (
        from_mapping(Config, {**manifest.recipe(name, "paper")[1], "data": "coco", "seed": 0}, name)
        for name in ("coco-vitdet-frozen", "coco-vitdet-12")
    )
    spec = VitSpec(
        embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14)
    )
    assert replace(frozen, trunk="trained", relative_positions=True, attention="stock") == usual
    planned = plan(frozen, spec)
    assert planned.steps == plan(usual, spec).steps == 88_750
    assert planned.global_blocks == tuple(range(12))
    assert resolved(spec, frozen)["drop_path"] == 0
    need, most = footprint(spec, frozen, 0), footprint(spec, usual, 0)
    assert need.memory < most.memory / 3
    assert need.disk < most.disk


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"relative_positions": True}, "cannot be learned; set relative_positions: false"),
        ({"window": 7}, "trunk frozen with window: 7"),
        ({"drop_path": 0.1}, "trunk frozen with drop_path: 0.1"),
        ({"layer_decay": 0.7}, "leave layer_decay out"),
        ({"global_blocks": 2}, "trunk frozen with global_blocks: 2"),
    ],
)
def test_what_a_frozen_trunk_has_no_use_for_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(data=Path("coco"), **{"trunk": "frozen", "relative_positions": False, **changes})


def test_a_trained_trunk_keeps_its_digest() -> None:
    assert "trunk" not in to_mapping(Config(data=Path("coco")))


def test_a_saved_state_gives_the_same_detector_again(
    finished: tuple[Path, TaskResult], weights: VitWeights, coco: Path
) -> None:
    model = detector(weights, coco)
    assert Checkpoints(model, str(finished[0] / "checkpoints")).read_last()
    after = final(finished[0])
    assert all(torch.equal(tensor, after[name]) for name, tensor in model.state_dict().items())
