"""Networks with levels in detection: detectron2's own Swin at any size, and a detector over every family."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")

from detectron2.modeling.backbone.swin import SwinTransformer
from detectron2.utils.events import EventStorage

from mimbench.networks.levels import LevelSpec, LevelWeights, random_levels
from mimbench.system.errors import UserError
from mimbench.task import Machine
from mimbench.vit.weights import random_weights
from transfer.detection import fpn, recipe, vitdet
from transfer.detection.protocol import Config

SWIN = LevelSpec(
    architecture="swin_tiny_patch4_window7_224",
    options={"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 4},
    image_size=(128, 128),
)
FAMILIES = {
    "swin": SWIN,
    "convnext": LevelSpec(
        architecture="convnext_tiny", options={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
    ),
    "convnextv2": LevelSpec(
        architecture="convnextv2_tiny", options={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
    ),
    "hiera": LevelSpec(
        architecture="hiera_tiny_224",
        options={"embed_dim": 12, "num_heads": 1, "stages": [1, 1, 1, 1]},
        image_size=(64, 64),
    ),
    "resnet": LevelSpec(
        architecture="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    ),
}


def shaken(spec: LevelSpec) -> LevelWeights:
    weights = random_levels(spec, seed=3)
    draw = torch.Generator().manual_seed(7)
    tensors = {n: t + 0.1 * torch.rand(t.shape, generator=draw) for n, t in weights.tensors.items()}
    return LevelWeights(spec=spec, tensors=tensors, format="random", digest="0" * 64, name="x")


def detectron2s(weights: LevelWeights) -> Any:
    """Return detectron2's own Swin with the weights, without its output norms."""
    model: Any = SwinTransformer(
        pretrain_img_size=128,
        embed_dim=12,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
    )
    own = model.state_dict()
    state = {
        re.sub(r"layers\.(\d)\.downs", lambda m: f"layers.{int(m[1]) - 1}.downs", name): tensor
        for name, tensor in weights.tensors.items()
        if not name.startswith("norm.")
    }
    assert state.keys() <= own.keys()
    model.load_state_dict({**own, **state})
    for i in range(4):
        setattr(model, f"norm{i}", nn.Identity())
    return model.eval()


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (112, 176), (100, 172)])
def test_our_swin_is_detectron2s_at_every_size(size: tuple[int, int]) -> None:
    """timm's own, which rolls before it pads, differs where a stage is padded."""
    weights = shaken(SWIN)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    trunk = fpn.LevelTrunk(spec=SWIN.to_json(), drop_path=0.0).eval()
    trunk.norms = nn.ModuleList(nn.Identity() for _ in range(4))
    own = trunk.body.state_dict()
    trunk.body.load_state_dict({n: weights.tensors.get(n, t) for n, t in own.items()})
    theirs = detectron2s(weights)
    with torch.no_grad():
        ours, wanted = trunk(images), theirs(images)
    for found, reference in zip(ours.values(), wanted.values(), strict=True):
        torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-5)


def test_timms_order_would_be_another_function() -> None:
    weights = shaken(SWIN)
    images = torch.randn(1, 3, 112, 176, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in SWIN.options.items()
    }
    options |= {"img_size": 128, "strict_img_size": False, "always_partition": True}
    timms: Any = timm.create_model(SWIN.architecture, num_classes=0, **options)
    assert timms.load_state_dict(dict(weights.tensors)) is not None
    with torch.no_grad():
        found = timms.eval().forward_intermediates(images, indices=[2], intermediates_only=True)[0]
        wanted = list(detectron2s(weights)(images).values())[2]
    assert (found - wanted).norm() / wanted.norm() > 0.01


def small(**changes: Any) -> fpn.Config:
    return fpn.Config(
        **{
            "data": Path(),
            "image_size": 64,
            "pyramid_channels": 16,
            "box_convs": 1,
            "box_width": 16,
            "mask_convs": 1,
            "precision": "fp32",
            "machine": Machine(device="cpu", workers=0),
            **changes,
        }
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_takes_a_step_and_sees(family: str) -> None:
    from detectron2.structures import BitMasks, Boxes, Instances

    weights = shaken(FAMILIES[family])
    design = fpn.design(weights, small(), classes=3)
    count = sum(not n.startswith(("norm.", "head.norm.")) for n in weights.tensors)
    assert design.report.startswith(f"{count} of {count} backbone tensors used")
    body = design.model.get_submodule("backbone.bottom_up.body").state_dict()
    for name, tensor in weights.tensors.items():
        assert name not in body or torch.equal(body[name], tensor)
    truth = Instances((64, 48))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    truth.gt_classes = torch.tensor([1])
    truth.gt_masks = BitMasks(torch.ones(1, 64, 48))
    picture: dict[str, Any] = {"image": torch.rand(3, 64, 48) * 255, "height": 64, "width": 48}
    with EventStorage():
        losses = design.model.train()([{**picture, "instances": truth}])
    total: Tensor = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    reached = [n for n, p in design.model.named_parameters() if p.grad is not None]
    assert len(reached) == len(list(design.model.parameters()))
    with torch.no_grad():
        [found] = design.model.eval()([picture])
    assert found["instances"].image_size == (64, 48)


def test_batch_norms_keep_their_statistics() -> None:
    weights = shaken(FAMILIES["resnet"])
    model = fpn.design(weights, small(), classes=3).model.train()
    trunk = model.get_submodule("backbone.bottom_up")
    before = {n: b.clone() for n, b in trunk.named_buffers()}
    trunk(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(b, before[n]) for n, b in trunk.named_buffers())


def test_norms_and_bias_tables_do_not_decay_and_layers_do_not_differ() -> None:
    config = small()
    design = fpn.design(shaken(SWIN), config, classes=3)
    design.optimizer.params.model = design.model
    names = {id(p): n for n, p in design.model.named_parameters()}
    for group in recipe.instantiate(design.optimizer).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            # as in detectron2's own recipe, the channel-first norms of FPN and heads do decay
            trunk = name.startswith("backbone.bottom_up")
            spared = trunk and ("norm" in name or name.endswith("bias_table"))
            assert group["lr"] == config.learning_rate
            assert group["weight_decay"] == (0.0 if spared else 0.05), name


def planned(config: fpn.Config) -> Any:
    return fpn.plan(config, fpn.settled(SWIN, config)[0])


def test_the_schedule_is_fifty_epochs() -> None:
    found = planned(small())
    assert found.steps == 92_187
    assert found.schedule == (163_889, 177_546, 184_375)
    assert planned(small(batch=16, images=1_600)).steps == 100


def test_each_detector_names_the_other(tiny_spec: Any) -> None:
    with pytest.raises(
        UserError, match=r"counterpart is Mask R-CNN with FPN: --only coco-fpn-levels-50"
    ):
        vitdet.design(shaken(SWIN), Config(data=Path()), classes=3)
    with pytest.raises(UserError, match=r"gives \[16\]; one map goes into ViTDet"):
        fpn.design(random_weights(tiny_spec, 0), small(), classes=3)
