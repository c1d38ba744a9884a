"""DINO's projection head: an MLP to a bottleneck, normalised, then directions with gains."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.objectives.distill.config import HeadConfig


class Directions(nn.Module):
    """A linear map without bias whose rows are gains times unit vectors."""

    def __init__(self, inputs: int, outputs: int, *, fixed_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed_gain)
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped vectors."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class ProjectionHead(nn.Module):
    """Tokens to logits; patches may have directions of their own."""

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        sizes = [width, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            linear = nn.Linear(inputs, outputs)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        fixed = config.norm_last
        self.last_layer = Directions(config.bottleneck, config.outputs, fixed_gain=fixed)
        self.patch_layer = (
            None
            if config.shared
            else Directions(config.bottleneck, config.outputs, fixed_gain=fixed)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of class tokens (..., width)."""
        return self.last_layer(self.project(x))

    def patches(self, x: Tensor) -> Tensor:
        """Return the logits of patches (..., width)."""
        return (self.patch_layer or self.last_layer)(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """Return the point on the sphere that the directions are compared with."""
        return F.normalize(self.mlp(x), dim=-1, eps=1e-6)
