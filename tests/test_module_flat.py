"""A user's module with one map, or with some levels of four, in detection and segmentation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("detectron2")
pytest.importorskip("mmseg")

import mimbench
from mimbench.model import Level
from mimbench.networks.completed import CompletedLevels, fitted, lacking
from mimbench.networks.module import ModuleWeights, adapt
from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitWeights, random_weights
from tests.support.detection_run import SPEC, small
from transfer.detection import fpn, vitdet
from transfer.segmentation import backbone as backbones
from transfer.segmentation import linear, upernet


class Flat(nn.Module):
    """One convolution: a map of one stride."""

    def __init__(self, stride: int = 8, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, width, stride, stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).mean(dim=(2, 3))


def adapted(stride: int = 8, **more: Any) -> ModuleWeights:
    def maps(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
        assert isinstance(module, Flat)
        return [module.patches(images)]

    return adapt(
        Flat(stride), name="mine", maps=maps, strides=(stride,), image_size=8 * stride, **more
    )


def of_strides(*strides: int) -> ModuleWeights:
    """A module whose maps have these strides."""
    module = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in strides)

    def maps(owner: nn.Module, images: Tensor) -> Sequence[Tensor]:
        return [part(images) for part in owner.children()]

    def vector(owner: nn.Module, images: Tensor) -> Tensor:
        return maps(owner, images)[-1].mean(dim=(2, 3))

    return adapt(module, name="some", vector=vector, maps=maps, strides=strides, image_size=64)


def test_the_pyramid_over_a_module_is_the_one_over_a_vit(coco: Path) -> None:
    """One ViT, as a checkpoint and as a module: the same levels to 1e-5, when nothing is windowed."""
    weights = random_weights(SPEC, 0)
    config = small(coco, global_blocks=SPEC.depth, relative_positions=False, image_size=64)
    # what ViTDet reads of a ViT: patches alone, before the final norm
    body: Any = build_backbone(weights)

    def maps(module: nn.Module, images: Tensor) -> Sequence[Tensor]:
        detector: Any = plain.get_submodule("backbone.net")
        return [detector(images)["last_feat"]]

    plain = vitdet.design(weights, config, classes=3).model.eval()

    def vector(module: nn.Module, images: Tensor) -> Tensor:
        return maps(module, images)[0].mean(dim=(2, 3))

    owned = adapt(
        body, name="vit", vector=vector, maps=maps, strides=(SPEC.patch_size,), image_size=64
    )
    flat = vitdet.design(owned, config, classes=3)
    theirs, ours = plain.get_submodule("backbone"), flat.model.eval().get_submodule("backbone")
    state = {n: t for n, t in theirs.state_dict().items() if not n.startswith("net.")}
    assert not ours.load_state_dict(state, strict=False).unexpected_keys
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted, found = theirs(picture), ours(picture)
    assert wanted.keys() == found.keys()
    for name, level in wanted.items():
        torch.testing.assert_close(found[name], level, atol=1e-5, rtol=1e-5)
    assert any(note.startswith("user module: ViTDet's pyramid") for note in flat.plan.notes)
    assert flat.plan.steps == config.images // config.batch  # pyright: ignore[reportOptionalOperand]


@pytest.fixture(scope="module")
def coco(scenes: Callable[[int, int], Path]) -> Path:
    return scenes(8, 4) / "coco"


def test_a_flat_module_is_trained_in_vitdet_from_python(coco: Path, tmp_path: Path) -> None:
    module = Flat()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    result = vitdet.run(adapted(), small(coco), tmp_path / "run")
    assert 0 <= result.metrics["box_ap"] <= 100
    assert result.notes["tensors"].startswith("a module of the user's own: 2 tensors are trained")
    assert result.notes["notes"][0].startswith("user module")
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    saved = torch.load(tmp_path / "run/checkpoints/model_final.pth", weights_only=True)["model"]
    [name] = [n for n in saved if n.endswith("patches.weight")]
    assert not torch.equal(saved[name], before["patches.weight"])


def test_a_frozen_flat_module_stays_as_it_is(coco: Path) -> None:
    config = small(
        coco, trunk="frozen", relative_positions=False, window=14, global_blocks=4, drop_path=None
    )
    design = vitdet.design(adapted(), config, classes=3)
    trunk = design.model.train().get_submodule("backbone.net")
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    assert not trunk(torch.randn(1, 3, 64, 64))["last_feat"].requires_grad


def test_what_is_undefined_is_refused_with_what_to_do(coco: Path) -> None:
    with pytest.raises(
        UserError, match=r"stride 14.*resize the pictures by 14/16.*strides=\(16,\)"
    ):
        vitdet.design(adapted(14), small(coco), classes=3)
    alone = adapt(Flat(), name="alone", image_size=64)
    with pytest.raises(UserError, match="image vector alone; a detector reads a map"):
        vitdet.design(alone, small(coco), classes=3)
    with pytest.raises(UserError, match="one map goes into ViTDet"):
        fpn.design(adapted(), fpn.Config(data=coco), classes=3)
    with pytest.raises(UserError, match="none of its maps has a stride of 4, 8, 16, 32"):
        CompletedLevels([Level(stride=7, channels=8), Level(stride=14, channels=8)])
    with pytest.raises(UserError, match=r"levels: four\) cannot read"):
        linear.model_recipe(adapted().spec, linear.Config(data=Path(), levels="four"))


@pytest.mark.parametrize(
    ("own", "widths"),
    [
        ((8, 16, 32), [4, 8, 8, 8]),
        ((16, 32), [2, 4, 8, 8]),
        ((4, 16), [8, 8, 8, 8]),
        ((2, 4, 64), [8] * 4),
    ],
)
def test_levels_that_a_module_lacks_are_made(own: tuple[int, ...], widths: list[int]) -> None:
    levels = [Level(stride=stride, channels=8) for stride in own]
    made = CompletedLevels(levels)
    assert [level.channels for level in made.levels] == widths
    assert [level.stride for level in made.levels] == [4, 8, 16, 32]
    given = [torch.randn(1, 8, 64 // stride, 128 // stride) for stride in own]
    found = made(given)
    assert [tuple(m.shape) for m in found] == [
        (1, w, 64 // s, 128 // s) for w, s in zip(widths, (4, 8, 16, 32), strict=True)
    ]
    for stride, level in zip((4, 8, 16, 32), found, strict=True):
        if stride in own:
            assert level is given[own.index(stride)]
    assert lacking(levels) == [stride for stride in (4, 8, 16, 32) if stride not in own]
    # a gap is the maximum of the next finer map
    if own == (4, 16):
        assert torch.equal(found[1], nn.functional.max_pool2d(given[0], 2))


@pytest.mark.parametrize("own", [(8, 16, 32), (16, 32)])
def test_a_module_with_some_levels_goes_into_both_heads(own: tuple[int, ...], coco: Path) -> None:
    weights = of_strides(*own)
    config = fpn.Config(
        data=coco, image_size=64, pyramid_channels=16, box_convs=1, box_width=16, mask_convs=1, precision="fp32"
    )  # fmt: skip
    design = fpn.design(weights, config, classes=3)
    assert any("are made from its own" in note for note in design.plan.notes)
    pyramid = design.model.get_submodule("backbone")(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[2:]) for m in pyramid.values()] == [
        (16, 16),
        (8, 8),
        (4, 4),
        (2, 2),
        (1, 1),
    ]
    found = upernet.model_recipe(weights.spec, upernet.Config(data=Path(), crop=(64, 64)))
    assert any("are made from its own" in note for note in found.notes)
    shapes = [tuple(m.shape[2:]) for m in built(found, weights)(torch.randn(1, 3, 50, 70))]
    assert shapes == [(13, 18), (7, 9), (4, 5), (2, 3)]


def built(recipe: Any, weights: ModuleWeights | VitWeights, side: int = 64) -> Any:
    from mmseg.registry import MODELS

    trunk = MODELS.build(recipe.backbone)
    backbones.load(trunk, weights, recipe.kind, (side, side), tap_norm=False)
    return trunk


@pytest.mark.parametrize("stride", [8, 14])
def test_upernet_rescales_one_map_as_it_does_a_vits(stride: int) -> None:
    from mmseg.registry import MODELS

    weights = adapted(stride)
    found = upernet.model_recipe(
        weights.spec, upernet.Config(data=Path(), crop=(64, 64), channels=16)
    )
    assert found.neck == {"type": "Feature2Pyramid", "embed_dim": 8, "rescales": [4, 2, 1, 0.5]}
    assert any(note.startswith("user module: its one map") for note in found.notes)
    trunk = built(found, weights)
    taps = trunk.train()(torch.randn(2, 3, 64, 64))
    assert len(taps) == 4
    assert all(tap is taps[0] for tap in taps)
    neck = MODELS.build({**(found.neck or {}), "norm_cfg": {"type": "BN"}})
    head = MODELS.build({**found.decode_head, "num_classes": 3, "norm_cfg": {"type": "BN"}})
    head(neck(taps)).square().mean().backward()
    assert all(p.grad is not None for p in trunk.body.parameters())
    # a stride that does not divide the crop sees the whole picture, enlarged, as a ViT's patches do
    side = -(-64 // stride)
    assert tuple(taps[0].shape[2:]) == (side, side)
    images = torch.randn(1, 3, 64, 64)
    if stride == 14:
        size = (70, 70)
        enlarged = nn.functional.interpolate(
            images, size=size, mode="bilinear", align_corners=False
        )
        assert torch.equal(fitted(images, [14]), enlarged)


def test_the_linear_head_reads_a_frozen_modules_map() -> None:
    weights = of_strides(8, 16)
    found = linear.model_recipe(weights.spec, linear.Config(data=Path(), crop=(64, 64)))
    assert found.notes == ("user module: the map of stride 16",)
    trunk = built(found, weights).train()
    images = torch.randn(1, 3, 64, 64)
    [only] = trunk(images)
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    assert torch.equal(only, weights.maps(weights.module, images)[-1])  # pyright: ignore[reportOptionalCall]


def test_a_modules_column_says_so(coco: Path, tmp_path: Path) -> None:
    """It stands beside no ViT's number, though the recipe is the same."""
    changes = {
        name: value
        for name, value in to_mapping(small(coco)).items()
        if name
        not in ("data", "machine", "train_images", "train_json", "val_images", "val_json", "seed")
    }
    found = mimbench.evaluate(
        adapted(), ["coco-vitdet-12"], data=coco.parent, own_data=True, out=tmp_path / "runs", name="mine",
        settings={"coco-vitdet-12": changes}, device="cpu",
    )["coco-vitdet-12"]  # fmt: skip
    assert found.ran == {"protocol": "user module"}
    text = str(mimbench.table(tmp_path / "runs", format="markdown"))
    assert "protocol user module" in text
    assert "mine (not audited)" in text
    recipe = upernet.model_recipe(adapted().spec, upernet.Config(data=Path()))
    assert recipe.ran == {"protocol": "user module"}
    several = fpn.Config(
        data=coco, image_size=64, pyramid_channels=16, box_convs=1, box_width=16, mask_convs=1, precision="fp32"
    )  # fmt: skip
    assert fpn.design(of_strides(8, 16), several, classes=3).ran == {"protocol": "user module"}
