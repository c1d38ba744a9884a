"""Architectures of timm with random weights through k-NN, one detection step and one segmentation step.

Where a head has no meaning for an architecture, its refusal says why: that is a result too.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2")
pytest.importorskip("mmseg")

from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from mmseg.registry import MODELS

from mimbench.model import strides
from mimbench.networks.frozen import LevelNetwork
from mimbench.networks.levels import STRIDES, LevelSpec, LevelWeights, random_levels
from mimbench.scores.neighbours import knn
from mimbench.system.errors import UserError
from mimbench.task import Machine
from transfer.detection import fpn
from transfer.segmentation import backbone as backbones
from transfer.segmentation import upernet

SIDE = 64
SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2}
LEVELS: dict[str, dict[str, Any]] = {
    "resnet18": {}, "resnet34": {}, "resnet26": {}, "seresnet18": {}, "resnetblur18": {},
    "resnext26ts": {}, "wide_resnet50_2": {"layers": [1, 1, 1, 1]},
    "convnext_atto": {}, "convnext_femto": {}, "convnextv2_atto": {}, "convnextv2_femto": {},
    "swin_tiny_patch4_window7_224": SWIN, "swin_s3_tiny_224": {"img_size": SIDE, "window_size": 2},
    "hiera_tiny_224": {"embed_dim": 24, "stages": [1, 1, 1, 1]},
    "efficientnet_b0": {}, "tf_efficientnet_b0": {}, "efficientnet_lite0": {},
    "mobilenetv2_050": {}, "mobilenetv3_small_050": {}, "mnasnet_small": {},
    "regnetx_002": {}, "regnety_002": {}, "pvt_v2_b0": {}, "mvitv2_tiny": {},
    "poolformer_s12": {}, "poolformerv2_s12": {}, "edgenext_xx_small": {}, "fastvit_t8": {},
    "repvit_m0_9": {}, "efficientformerv2_s0": {"img_size": SIDE}, "inception_next_atto": {},
    "densenet121": {"block_config": [1, 1, 1, 1]}, "dla34": {}, "hrnet_w18_small": {},
    "ghostnet_050": {}, "rexnet_100": {}, "tinynet_e": {}, "semnasnet_075": {},
    "darknet53": {"stages": None}, "cspresnet50": {},
}  # fmt: skip
FLAT = [
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224", "xcit_nano_12_p16_224", "mixer_s32_224",
]  # fmt: skip


def spec_of(name: str, options: dict[str, Any]) -> LevelSpec:
    options = {k: v for k, v in options.items() if v is not None}
    return LevelSpec(architecture=name, options=options, image_size=(SIDE, SIDE))


def nearest(network: LevelNetwork) -> torch.Tensor:
    """Return the classes that a k-NN over six pictures of noise votes for."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, SIDE, SIDE, generator=draw)
    vectors = nn.functional.normalize(network.vectors(images, 1)["avg.1"], dim=1)
    assert torch.isfinite(vectors).all()
    return knn(vectors, torch.arange(6), vectors, k=1, temperature=0.07, classes=6)[:, 0]


def detection_step(weights: LevelWeights) -> None:
    config = fpn.Config(
        data=Path(), image_size=SIDE, pyramid_channels=16, box_convs=1, box_width=16, mask_convs=1,
        precision="fp32", drop_path=0.0, machine=Machine(device="cpu", workers=0),
    )  # fmt: skip
    model = fpn.design(weights, config, classes=3).model.train()
    truth = Instances((SIDE, SIDE))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    truth.gt_classes = torch.tensor([1])
    truth.gt_masks = BitMasks(torch.ones(1, SIDE, SIDE))
    image = torch.rand(3, SIDE, SIDE) * 255
    with EventStorage():
        losses = model([{"image": image, "height": SIDE, "width": SIDE, "instances": truth}])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    trunk = model.get_submodule("backbone.bottom_up.body")
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trunk.parameters())


def segmentation_step(weights: LevelWeights) -> None:
    config = upernet.Config(data=Path(), crop=(SIDE, SIDE), channels=16, drop_path=0.0)
    found = upernet.model_recipe(weights.spec, config)
    trunk = MODELS.build(found.backbone)
    backbones.load(trunk, weights, found.kind, (SIDE, SIDE), tap_norm=False)
    head = MODELS.build({**found.decode_head, "num_classes": 3, "norm_cfg": {"type": "BN"}})
    loss = head(trunk.train()(torch.randn(2, 3, SIDE, SIDE))).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trunk.body.parameters())


def test_the_zoo_has_forty_architectures() -> None:
    import timm

    names = [*LEVELS, *FLAT]
    assert len(names) >= 40
    assert set(names) <= set(timm.list_models())


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", LEVELS)
def test_an_architecture_with_levels_in_all_heads(name: str) -> None:
    weights = random_levels(spec_of(name, LEVELS[name]), seed=0)
    assert nearest(LevelNetwork(weights)).tolist() == list(range(6))
    if tuple(strides(weights.spec)) == STRIDES:
        detection_step(weights)
        segmentation_step(weights)
        return
    with pytest.raises(UserError, match=r"an FPN reads maps of strides \[4, 8, 16, 32\]"):
        detection_step(weights)
    with pytest.raises(UserError, match="UperNet reads 4 levels"):
        segmentation_step(weights)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", FLAT)
def test_a_flat_architecture_without_a_format_of_its_own(name: str) -> None:
    """Its image vector is evaluated; heads that need a name map say what they read instead."""
    side = 56 if "patch14" in name else SIDE
    options = {"img_size": side}
    weights = random_levels(spec_of(name, options), seed=0)
    draw = torch.Generator().manual_seed(0)
    found = LevelNetwork(weights)(torch.rand(2, 3, side, side, generator=draw))
    assert found.shape == (2, weights.spec.embed_dim)
    assert torch.isfinite(found).all()
    with pytest.raises(UserError, match=r"one map goes into ViTDet \(--only coco-vitdet-12\)"):
        detection_step(weights)
    with pytest.raises(UserError, match="UperNet reads 4 levels"):
        segmentation_step(weights)


def test_an_architecture_of_one_size_says_so() -> None:
    """timm's own failure on another size is a traceback somewhere in its attention."""
    weights = random_levels(spec_of("efficientformerv2_s0", {"img_size": SIDE}), seed=0)
    network = LevelNetwork(weights)
    assert [m.shape[2] for m in network.maps(torch.rand(1, 3, SIDE, SIDE))] == [16, 8, 4, 2]
    with pytest.raises(UserError, match=r"does not read images of 96x96: timm builds it for 64x64"):
        network.maps(torch.rand(1, 3, 96, 96))
