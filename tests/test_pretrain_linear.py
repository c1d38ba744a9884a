"""Matrix products by oneDNN: the same values and gradients as PyTorch's own linear maps."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.models import linear as module
from pretrain.models.linear import Linear, linear


def answers(apply: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Return output and all three gradients."""
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out = apply(*given)
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in given if t.grad is not None)]


@pytest.mark.parametrize("shape", [(5, 384), (2, 7, 96), (2, 3, 4, 8)])
def test_values_and_gradients_are_those_of_the_plain_map(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(24, shape[-1], generator=generator) / shape[-1] ** 0.5
    bias = torch.randn(24, generator=generator)
    ours, plain = answers(linear, x, weight, bias), answers(F.linear, x, weight, bias)
    assert len(ours) == len(plain) == 4
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_frozen_map_gets_no_gradient_and_still_hands_one_on() -> None:
    layer = Linear(8, 4).requires_grad_(False)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(3, 8))


def test_other_types_and_autocast_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> Tensor:
        raise AssertionError("oneDNN's float32 product was asked for")

    monkeypatch.setattr(module._Product, "apply", refuse)
    layer = Linear(8, 4)
    assert layer.double()(torch.zeros(2, 8, dtype=torch.float64)).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(torch.zeros(2, 8)).dtype == torch.bfloat16
