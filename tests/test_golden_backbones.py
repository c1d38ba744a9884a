"""Published layouts of modern backbones give the reference networks' features at both shapes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mimbench.checkpoints.files import read_vit, read_weights, write_weights
from mimbench.model import strides
from mimbench.networks.frozen import LevelNetwork, level_maps
from mimbench.networks.kinds import build_network
from mimbench.networks.levels import LevelWeights
from mimbench.networks.selftest import wiring
from mimbench.vit import network
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.rotary import rotation_angles
from mimbench.vit.weights import VitWeights

VITS = [
    "dinov3", "dinov3_hf", "dinov3_swiglu", "dinov2_swiglu_reg", "eva02", "beit", "clip", "aimv2", "ijepa", "capi",
]  # fmt: skip
LEVELS = ["convnextv2", "swin_simmim", "hiera"]
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
"""The reference images are normalised already."""


def arrays(golden: Path, name: str) -> dict[str, Tensor]:
    with np.load(golden / f"backbone_{name.removesuffix('_hf')}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def vit(golden: Path, name: str) -> VitWeights:
    return read_vit(golden / f"backbone_{name}.pth", num_heads=3).with_spec(**RAW)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("name", VITS)
def test_a_vit_of_any_positions_sees_what_the_reference_sees(
    name: str, shape: str, golden: Path
) -> None:
    wanted, backbone = arrays(golden, name), build_backbone(vit(golden, name))
    images = wanted[f"{shape}/images"]
    for i, found in enumerate(backbone.blocks(images, [0, 1, 2], norm=False)):
        close(found.patches, wanted[f"{shape}/block_{i}/patches"])
    final = backbone(images)
    close(final.patches, wanted[f"{shape}/final/patches"])
    if f"{shape}/final/prefix" in wanted:
        prefix, first = wanted[f"{shape}/final/prefix"], backbone.spec.first_tokens
        close(final.cls, prefix[:, 0] if first else final.patches.mean(dim=(1, 2)))
        close(final.registers, prefix[:, first:])


@pytest.mark.parametrize("name", ["eva02", "aimv2", "ijepa", "capi"])
def test_our_own_file_keeps_a_modern_vit(name: str, golden: Path, tmp_path: Path) -> None:
    weights = vit(golden, name)
    write_weights(tmp_path / "own.safetensors", weights)
    again = read_vit(tmp_path / "own.safetensors")
    assert again.spec == weights.spec
    images = arrays(golden, name)["wide/images"]
    assert torch.equal(
        build_backbone(again)(images).patches, build_backbone(weights)(images).patches
    )


FAULTS = {
    "half for neighbouring pairs": ("eva02", {"rotation": "centred"}),
    "another grid of training": ("eva02", {"rotation_grid": 8}),
    "neighbouring for half pairs": ("dinov3", {"rotation": "stretched", "rotation_grid": 4}),
    "gelu for quick gelu": ("clip", {"activation": "gelu"}),
    "no rotation": ("eva02", {"position": "absolute"}),
    "registers without places": ("capi", {"rotation": "centred"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_convention_shows(fault: str, golden: Path) -> None:
    """Every tensor fits, so that only features tell."""
    name, change = FAULTS[fault]
    wanted = arrays(golden, name)
    found = build_backbone(vit(golden, name).with_spec(**change))(wanted["square/images"])
    assert (found.patches - wanted["square/final/patches"]).abs().max() > 1e-3


def exchanged_table(weights: VitWeights) -> VitWeights:
    """The same file with rows and columns of its position table exchanged."""
    table, prefix = weights.tensors["pos_embed"], weights.spec.position_prefix
    cells = table[:, prefix:].unflatten(1, weights.spec.grid).transpose(1, 2).flatten(1, 2)
    changed = {**weights.tensors, "pos_embed": torch.cat([table[:, :prefix], cells], dim=1)}
    return replace(weights, tensors=changed)


@pytest.mark.parametrize("name", ["clip", "eva02", "dinov2_swiglu_reg", "ijepa"])
def test_an_exchanged_table_shows_at_a_wide_size(name: str, golden: Path) -> None:
    wanted = arrays(golden, name)
    found = build_backbone(exchanged_table(vit(golden, name)))(wanted["wide/images"])
    assert (found.patches - wanted["wide/final/patches"]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["dinov3", "eva02", "capi"])
def test_an_exchanged_rotation_shows_at_a_wide_size(
    name: str, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchanged(grid: tuple[int, int], width: int, *rest: Any, **more: Any) -> torch.Tensor:
        return rotation_angles(grid, width, *rest, **more).unflatten(1, (2, -1)).flip(1).flatten(1)

    wanted = arrays(golden, name)
    backbone = build_backbone(vit(golden, name))
    close(backbone(wanted["wide/images"]).patches, wanted["wide/final/patches"])
    monkeypatch.setattr(network, "rotation_angles", exchanged)
    found = backbone(wanted["wide/images"])
    assert (found.patches - wanted["wide/final/patches"]).abs().max() > 1e-4


def test_the_registration_test_cannot_see_an_exchanged_table(golden: Path) -> None:
    """Why parity stands beside it: a mark moves its own patch, whatever the table says."""
    answers = wiring(exchanged_table(vit(golden, "clip")))
    assert all(answer.sound for answer in answers)


def test_ijepa_offers_target_and_context_encoder(golden: Path) -> None:
    path = golden / "backbone_ijepa.pth"
    target, context = (read_vit(path, which=w, num_heads=3) for w in ("teacher", "student"))
    assert read_vit(path, num_heads=3).which == "teacher"
    assert target.digest != context.digest
    for name, tensor in target.tensors.items():
        close(context.tensors[name], tensor + 0.01)


def levels(golden: Path, name: str) -> LevelWeights:
    heads = int(arrays(golden, name)["heads"][0]) if name == "hiera" else None
    weights = read_weights(golden / f"backbone_{name}.pth", num_heads=heads)
    assert isinstance(weights, LevelWeights)
    return weights.with_spec(**RAW)


@pytest.mark.parametrize("shape", ["square", "wide"])
@pytest.mark.parametrize("name", LEVELS)
def test_maps_of_a_network_with_levels(name: str, shape: str, golden: Path) -> None:
    wanted, weights = arrays(golden, name), levels(golden, name)
    network = build_network(weights)
    assert isinstance(network, LevelNetwork)
    images = wanted[f"{shape}/images"]
    # the reference follows Swin's classifier on the square, detectors on the other shape
    body = network.classifier if shape == "square" else network.body
    found = level_maps(body, weights.spec, images)
    assert strides(weights.spec) == [4, 8, 16, 32]
    for i, (got, level) in enumerate(zip(found, weights.spec.levels, strict=True)):
        close(got, wanted[f"{shape}/level_{i}"])
        assert got.shape[1] == level.channels


def test_a_swin_shifts_its_last_stage_in_detectors_alone(golden: Path) -> None:
    wanted, weights = arrays(golden, "swin_simmim"), levels(golden, "swin_simmim")
    found = LevelNetwork(weights).maps(wanted["square/images"])
    for i in range(3):
        close(found[i], wanted[f"square/level_{i}"])
    assert (found[3] - wanted["square/level_3"]).abs().max() > 1e-2


@pytest.mark.parametrize("name", LEVELS)
def test_image_vectors_are_what_the_head_reads(name: str, golden: Path, tmp_path: Path) -> None:
    wanted, weights = arrays(golden, name), levels(golden, name)
    network = LevelNetwork(weights)
    images, final = wanted["square/images"], wanted["square/final"]
    norm = torch.nn.LayerNorm(weights.spec.embed_dim, eps=1e-6)
    pooled = final.mean(dim=(2, 3)) if name == "convnextv2" else final.flatten(1, -2).mean(dim=1)
    if name != "swin_simmim":
        # these two norm the mean
        norm.load_state_dict({k: weights.tensors[f"head.norm.{k}"] for k in ("weight", "bias")})
        pooled = norm(pooled)
    close(network(images), pooled.detach())
    assert network.vectors(images, 4).keys() == {"cls.1", "avg.1"}
    write_weights(tmp_path / "own.safetensors", weights)
    again = read_weights(tmp_path / "own.safetensors")
    assert again.spec == weights.spec
    assert torch.equal(build_network(again).vectors(images, 1)["avg.1"], network(images))


def test_backbones_keep_one_contract(golden: Path) -> None:
    for name in ("clip", "hiera"):
        weights = vit(golden, name) if name == "clip" else levels(golden, name)
        network = build_network(weights)
        images = torch.rand(1, 3, 64, 96)
        for found, level in zip(network.maps(images), weights.spec.levels, strict=True):
            assert found.shape == (1, level.channels, 64 // level.stride, 96 // level.stride)
        assert network.vectors(images, 1)["cls.1"].shape == (1, weights.spec.embed_dim)
        assert isinstance(network, Backbone) == (name == "clip")
