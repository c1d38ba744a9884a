"""Networks on a GPU: features equal to the CPU's, in every precision and memory layout.

`pytest -m gpu` needs a GPU; MIMBENCH_GPU_DEVICE=cpu rehearses the tests without one.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mimbench.features.search import search, usable_gpus
from mimbench.system.memory import Halving
from mimbench.system.runtime import Precision, autocast, pick_device
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.weights import VitSpec, random_weights
from tests.support.gpu import TOLERANCE, apart, chosen_device, real_gpu

pytestmark = pytest.mark.gpu

BASE = VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=8, grid=(4, 4))
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"register_tokens": 4},
    "layerscale": {"layer_scale": True},
    "quickgelu": {"activation": "quick_gelu"},
    "swiglu": {"mlp": "swiglu"},
    "rotary": {"position": "rotary"},
    "relative": {"position": "relative"},
}


@pytest.fixture
def device() -> torch.device:
    """The device, picked as every task picks it: that decides about TF32."""
    return pick_device(str(chosen_device()))


def backbone_of(kind: str) -> Backbone:
    return build_backbone(random_weights(replace(BASE, **KINDS[kind]), seed=0))


def pictures(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(
    backbone: Backbone, images: torch.Tensor, device: torch.device, precision: Precision = "fp32"
) -> torch.Tensor:
    moved = backbone.to(device)
    with autocast(device, precision):
        found = moved(images.to(device))
    out = torch.cat([found.cls, found.patches.flatten(1, 2).mean(1)], 1).float().cpu()
    moved.to("cpu")
    return out


@pytest.mark.parametrize("kind", list(KINDS))
def test_features_in_fp32_equal_the_cpus(kind: str, device: torch.device) -> None:
    backbone, images = backbone_of(kind), pictures()
    wanted = features(backbone, images, torch.device("cpu"))
    assert apart(features(backbone, images, device), wanted) < TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_in_half_precision_are_near(precision: Precision, device: torch.device) -> None:
    if precision == "fp16":
        real_gpu(device)
    backbone, images = backbone_of("plain"), pictures()
    wanted = features(backbone, images, torch.device("cpu"))
    found = features(backbone, images, device, precision)
    assert 0 < apart(found, wanted) < TOLERANCE[precision]


def test_channels_last_images_give_the_same_features(device: torch.device) -> None:
    backbone, images = backbone_of("plain"), pictures()
    wanted = features(backbone, images, device)
    found = features(backbone, images.to(memory_format=torch.channels_last), device)
    assert apart(found, wanted) < TOLERANCE["fp32"]


def test_a_compiled_backbone_gives_the_same_features(device: torch.device) -> None:
    backbone, images = backbone_of("plain").to(real_gpu(device)), pictures().to(device)
    with torch.no_grad():
        wanted = backbone(images)
        found = torch.compile(backbone)(images)
    assert apart(found.patches, wanted.patches) < TOLERANCE["fp32"]


def test_fp32_products_are_not_tf32(device: torch.device) -> None:
    """1 + 2**-12 survives fp32's 24 bits and not TF32's 11."""
    real_gpu(device)
    a = torch.full((64, 64), 1 + 2**-12, device=device)
    identity = torch.eye(64, device=device)
    assert torch.equal(a @ identity, a)


def test_fp32_convolutions_of_a_frozen_backbone_are_not_tf32(device: torch.device) -> None:
    real_gpu(device)
    backbone = backbone_of("plain")
    torch.manual_seed(0)
    images = pictures(16)
    wanted = features(backbone, images, torch.device("cpu"))
    # TF32's rounding of the patch embedding alone would leave 1e-4
    assert apart(features(backbone, images, device), wanted) < TOLERANCE["fp32"]


def test_out_of_memory_is_met_by_halving(device: torch.device) -> None:
    real_gpu(device)
    free, _ = torch.cuda.mem_get_info(device)
    largest = free // 4
    fit = Halving(size=64)

    def work(size: int) -> int:
        held = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(size)]
        return len(held)

    assert 1 <= fit.attempt(work) < 64
    assert fit.halved
    torch.cuda.empty_cache()


def test_neighbours_on_the_gpu_are_the_cpus(device: torch.device) -> None:
    if device.type == "cuda" and not usable_gpus("cuda:0"):
        pytest.skip("this FAISS has no GPU build")
    dice = np.random.default_rng(0)
    bank = dice.standard_normal((4000, 64), dtype=np.float32)
    queries = dice.standard_normal((200, 64), dtype=np.float32)
    _, wanted = search(bank, queries, 20, device="cpu")
    _, found = search(bank, queries, 20, device="cuda:0" if device.type == "cuda" else "cpu")
    assert (found == wanted).mean() > 0.999
