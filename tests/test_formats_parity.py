"""Files that the families' own models write give those models' features."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit, read_weights
from mimbench.networks.kinds import plain
from mimbench.vit.backbone import build_backbone
from tests.support.checkpoint_layouts import LAYOUTS, TINY, canonical

FEATURES = 1e-5


def shaken(model: nn.Module) -> nn.Module:
    """Move every parameter from its initial value, so that none can be forgotten unnoticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def tokens_of(path: Path, images: Tensor, **said: Any) -> Tensor:
    """Return every token for images that are already normalised."""
    backbone = build_backbone(plain(read_weights(path, **said), "this"))
    backbone.normalise.mean.zero_()
    backbone.normalise.std.fill_(1.0)
    with torch.inference_mode():
        features = backbone(images)
    return torch.cat([features.cls[:, None], features.registers, features.patches.flatten(1, 2)], 1)


def saved(model: nn.Module, path: Path) -> Path:
    state = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("shared", [True, False])
def test_beit_equals_timms_model(shared: bool, tmp_path: Path) -> None:
    model = Beit(
        img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=0, init_values=0.1,
        use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared, use_abs_pos_emb=False,
        global_pool="token",
    )  # fmt: skip
    path = saved(shaken(model), tmp_path / "beit.pth")
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        tokens_of(path, images), model.forward_features(images), atol=FEATURES, rtol=0
    )


def test_beit_on_another_grid_equals_timms_resized_model(tmp_path: Path) -> None:
    def build(size: int) -> Beit:
        return Beit(
            img_size=size, embed_dim=48, depth=2, num_heads=3, num_classes=0, init_values=0.1,
            use_rel_pos_bias=True, use_abs_pos_emb=False, global_pool="token",
        )  # fmt: skip

    small = shaken(build(64))
    path = saved(small, tmp_path / "beit.pth")
    large = build(96)
    state = timm.models.beit.checkpoint_filter_fn(small.state_dict(), large)
    large.load_state_dict(state)
    images = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(
        tokens_of(path, images), large.eval().forward_features(images), atol=FEATURES, rtol=0
    )


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_dinov3_equals_timms_model(
    bias: bool, gated: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    model = Eva(
        img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, qkv_bias=bias,
        init_values=0.1, rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
        use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4, use_fc_norm=False,
        num_classes=0, global_pool="token", dynamic_img_size=True, swiglu_mlp=gated,
        swiglu_align_to=8 if gated else 0, norm_layer=lambda d, **k: nn.LayerNorm(d, eps=1e-5, **k),
    )  # fmt: skip
    path = saved(shaken(model), tmp_path / "dinov3.safetensors")
    images = torch.randn(2, 3, *size)
    with torch.inference_mode():
        wanted = model.forward_features(images)
    torch.testing.assert_close(tokens_of(path, images, num_heads=3), wanted, atol=FEATURES, rtol=0)


TIMM = {
    "vit_tiny_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_base_patch16_clip_224": {},
}


SIZES = {"vit_small_patch14_reg4_dinov2": (56, 56)}


@pytest.mark.parametrize("name", TIMM)
def test_timms_models_come_back(name: str, tmp_path: Path) -> None:
    model = timm.create_model(name, depth=2, num_classes=10, **TIMM[name])
    assert isinstance(model, VisionTransformer)
    shaken(model)
    path = saved(model, tmp_path / "timm.safetensors")
    images = torch.randn(1, 3, *SIZES.get(name, (224, 224)))
    with torch.inference_mode():
        wanted = model.forward_features(images)
    said = {"activation": "gelu"} if "clip" in name else {}
    torch.testing.assert_close(tokens_of(path, images, **said), wanted, atol=2e-5, rtol=1e-5)


def test_giant_swiglu_packs_gate_first(tmp_path: Path) -> None:
    path = LAYOUTS["dinov2-swiglu"].save(TINY, tmp_path)
    t = canonical(LAYOUTS["dinov2-swiglu"].spec(TINY))
    x = torch.randn(1, 5, 48)
    gate, value = (x @ t["blocks.0.mlp.fc1.weight"].T + t["blocks.0.mlp.fc1.bias"]).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * value
    wanted = hidden @ t["blocks.0.mlp.fc2.weight"].T + t["blocks.0.mlp.fc2.bias"]
    mlp = build_backbone(read_vit(path, num_heads=3)).vit.get_submodule("blocks.0.mlp")
    torch.testing.assert_close(mlp(x), wanted, atol=1e-4, rtol=1e-5)
