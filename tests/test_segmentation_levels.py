"""Networks with levels in UperNet and under the linear head: maps, steps, layer decay as published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from mimbench.networks.frozen import LevelNetwork
from mimbench.networks.levels import LevelSpec, LevelWeights, random_levels
from mimbench.system.errors import UserError
from transfer.segmentation import backbone as backbones
from transfer.segmentation import linear, upernet
from transfer.segmentation.framework import OPTIM_WRAPPER_CONSTRUCTORS
from transfer.segmentation.levels import LevelsOptimum, TimmLevels, published, scale_of

FAMILIES = {
    "swin": LevelSpec(
        architecture="swin_tiny_patch4_window7_224",
        options={"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 2, 4], "window_size": 2},
        image_size=(64, 64),
    ),
    "convnext": LevelSpec(
        architecture="convnext_tiny", options={"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
    ),
    "hiera": LevelSpec(
        architecture="hiera_tiny_224",
        options={"embed_dim": 12, "num_heads": 1, "stages": [1, 1, 1, 1]},
        image_size=(64, 64),
    ),
    "resnet": LevelSpec(
        architecture="resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    ),
}  # fmt: skip


def shaken(spec: LevelSpec) -> LevelWeights:
    weights = random_levels(spec, seed=3)
    draw = torch.Generator().manual_seed(7)
    tensors = {n: t + 0.1 * torch.rand(t.shape, generator=draw) for n, t in weights.tensors.items()}
    return LevelWeights(spec=spec, tensors=tensors, format="random", digest="0" * 64, name="x")


def built(found: Any, weights: LevelWeights) -> TimmLevels:
    model = MODELS.build(found.backbone)
    backbones.load(model, weights, found.kind, (64, 64), tap_norm=found.tap_norm)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_upernet_reads_the_networks_own_maps(family: str) -> None:
    weights = shaken(FAMILIES[family])
    found = upernet.model_recipe(weights.spec, upernet.Config(data=Path(), crop=(64, 64)))
    assert found.neck is None
    assert found.decode_head["channels"] == 512
    assert found.auxiliary_head is not None
    assert found.auxiliary_head["in_channels"] == weights.spec.levels[2].channels
    model = built(found, weights)
    assert all(isinstance(n, nn.LayerNorm) for n in model.norms)
    model.norms = nn.ModuleList(nn.Identity() for _ in range(4))
    images = torch.randn(2, 3, 64, 96)
    raw = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    wanted = LevelNetwork(weights.with_spec(**raw)).maps(images)
    model.eval()
    for got, reference in zip(model(images), wanted, strict=True):
        torch.testing.assert_close(got, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_upernet_takes_a_step(family: str) -> None:
    weights = shaken(FAMILIES[family])
    found = upernet.model_recipe(
        weights.spec, upernet.Config(data=Path(), crop=(64, 64), channels=16)
    )
    model = built(found, weights).train()
    heads = [
        MODELS.build({**head, "num_classes": 3, "norm_cfg": {"type": "BN"}})
        for head in (found.decode_head, found.auxiliary_head)
        if head is not None
    ]
    maps = model(torch.randn(2, 3, 64, 64))
    logits: list[Tensor] = [head(maps) for head in heads]
    assert [tuple(x.shape) for x in logits] == [(2, 3, 16, 16), (2, 3, 4, 4)]
    sum(x.square().mean() for x in logits).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_head_reads_the_coarsest_map_under_the_networks_norm(family: str) -> None:
    weights = shaken(FAMILIES[family])
    found = linear.model_recipe(weights.spec, linear.Config(data=Path(), crop=(64, 64)))
    model = built(found, weights).train()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.body.modules())
    [tap] = model(torch.randn(1, 3, 64, 64))
    assert tap.shape == (1, weights.spec.levels[-1].channels, 2, 2)
    with pytest.raises(UserError, match="a protocol of plain ViTs"):
        linear.model_recipe(weights.spec, linear.Config(data=Path(), levels="four"))


def test_the_networks_norm_is_applied_place_by_place() -> None:
    weights = shaken(FAMILIES["convnext"])
    raw = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    images = torch.randn(1, 3, 32, 32)
    found = linear.model_recipe(weights.spec, linear.Config(data=Path(), crop=(32, 32)))
    [tap] = built(found, weights)(images)
    # a picture of one place: its norm is that of the pooled vector
    torch.testing.assert_close(
        tap[:, :, 0, 0], LevelNetwork(weights.with_spec(**raw))(images), atol=1e-5, rtol=0
    )


def test_a_tensor_without_a_place_is_refused() -> None:
    weights = shaken(FAMILIES["convnext"])
    found = upernet.model_recipe(weights.spec, upernet.Config(data=Path()))
    model = MODELS.build(found.backbone)
    lacking = {n: t for n, t in weights.tensors.items() if n != "stem.0.bias"}
    short = LevelWeights(spec=weights.spec, tensors=lacking, format="", digest="", name="short")
    with pytest.raises(UserError, match=r"short do not fit .*: missing stem\.0\.bias"):
        backbones.load(model, short, "TimmLevels", (64, 64), tap_norm=False)


@pytest.mark.parametrize(
    ("size", "groups", "stage3", "stem"), [("T", 6, 0.729, 0.4783), ("B", 12, 0.3874, 0.2542)]
)
def test_convnexts_stages_decay_as_mmseg_counts_them(
    size: str, groups: int, stage3: float, stem: float
) -> None:
    """Stem and every downsampling lie at the exponent's end, far below the stages they lead into."""
    depths = {"T": [3, 3, 9, 3], "B": [3, 3, 27, 3]}[size]
    spec = LevelSpec(
        architecture="convnext_tiny", options={"depths": depths}, name=f"ConvNeXt-{size}"
    )
    optimum, remark = published(spec)
    assert (optimum.groups, remark) == (groups, "")

    def scale(name: str) -> float:
        return scale_of(spec, spec.layer_of(name.removeprefix("body.")), name, optimum)

    assert scale("body.stages.3.blocks.0.gamma") == pytest.approx(stage3, abs=1e-4)
    assert scale("body.stages.3.downsample.1.weight") == pytest.approx(stem, abs=1e-4)
    assert scale("body.stem.0.weight") == pytest.approx(stem, abs=1e-4)
    assert scale_of(spec, None, "norms.0.weight", optimum) == 1.0


def test_families_without_a_published_recipe_say_so() -> None:
    for name in ("hiera", "resnet"):
        spec = FAMILIES[name]
        optimum, remark = published(spec)
        assert "those of mmsegmentation, Swin stand in" in remark
        assert optimum.lr == 6e-5
    optimum, remark = published(FAMILIES["swin"])
    assert (optimum.weight_decay, optimum.decay, remark) == (0.01, 1.0, "")


def test_the_optimiser_has_every_parameter_once() -> None:
    weights = shaken(FAMILIES["swin"])
    found = upernet.model_recipe(weights.spec, upernet.Config(data=Path(), crop=(64, 64)))
    model = nn.Module()
    model.backbone = built(found, weights)
    model.head = nn.Conv2d(3, 3, 1)
    assert found.levels is not None
    assert LevelsOptimum(**found.levels).drop_path == 0.3
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
        {
            "type": "LevelDecay",
            "optim_wrapper_cfg": {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.01},
            },
            "paramwise_cfg": {"optimum": found.levels},
        }
    )
    groups = constructor(model).optimizer.param_groups
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            spared = parameter.ndim == 1 or name.endswith("bias_table")
            assert group["weight_decay"] == (0.0 if spared else 0.01), name
