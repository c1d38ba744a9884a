"""Fused attention and recomputation: the same function and the same gradients."""

import copy

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling.backbone.vit import Attention, Block, ViT

from transfer.detection.attention import FusedAttention, RecomputedBlock, fuse, recompute


def stock(*, relative: bool = True, size: tuple[int, int] = (6, 6)) -> Attention:
    torch.manual_seed(0)
    module = Attention(48, 3, use_rel_pos=relative, input_size=size)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("grid", [(6, 6), (4, 6), (9, 5)])
def test_fused_attention_equals_detectron2s(relative: bool, grid: tuple[int, int]) -> None:
    first = stock(relative=relative)
    second = copy.deepcopy(first)
    second.__class__ = FusedAttention
    x = torch.randn(2, *grid, 48, generator=torch.Generator().manual_seed(1))
    results = []
    for module in (first, second):
        own = x.clone().requires_grad_()
        out = module(own)
        out.square().mean().backward()
        results.append((out, own.grad, {n: p.grad for n, p in module.named_parameters()}))
    (out_a, grad_a, weights_a), (out_b, grad_b, weights_b) = results
    assert out_a.abs().mean() > 0.1
    torch.testing.assert_close(out_b, out_a, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad_b, grad_a, atol=1e-5, rtol=1e-5)
    for name, gradient in weights_a.items():
        assert gradient is not None
        torch.testing.assert_close(weights_b[name], gradient, atol=1e-5, rtol=1e-5)


def small_vit(*, drop_path: float = 0.0) -> ViT:
    torch.manual_seed(0)
    vit = ViT(
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=3,
        use_rel_pos=True,
        rel_pos_zero_init=False,
        window_size=3,
        window_block_indexes=[0, 1],
        pretrain_img_size=64,
        drop_path_rate=drop_path,
    )
    return vit.train()


def gradients(vit: ViT, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    out = vit(images)["last_feat"]
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in vit.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_whole_vit_keeps_its_function_names_and_gradients(drop_path: float) -> None:
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(2))
    plain = small_vit(drop_path=drop_path)
    changed = small_vit(drop_path=drop_path)
    fuse(changed)
    recompute(changed)
    assert all(isinstance(block, RecomputedBlock) for block in changed.blocks)
    assert all(isinstance(block.attn, FusedAttention) for block in changed.blocks)
    assert plain.state_dict().keys() == changed.state_dict().keys()
    out, wanted = gradients(plain, images)
    found, got = gradients(changed, images)
    torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-5)
    assert wanted.keys() == got.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-5)


def test_recomputation_keeps_fewer_activations() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    held = {}
    for name, vit in (("kept", small_vit()), ("recomputed", small_vit())):
        if name == "recomputed":
            recompute(vit)
        stored: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=stored: (s.append(t.numel()), t)[1], lambda t: t
        ):
            vit(images)
        held[name] = sum(stored)
    assert held["recomputed"] < 0.3 * held["kept"]


def test_only_detectron2s_own_classes_are_changed() -> None:
    vit = small_vit()
    assert all(type(block) is Block for block in vit.blocks)
    fuse(vit)
    fuse(vit)
    assert all(type(block.attn) is FusedAttention for block in vit.blocks)
