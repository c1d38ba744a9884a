"""Stochastic depth whose draws follow the image: who else shares a micro-batch or a process is no matter.

timm draws from the device's generator, so that the same images lose other paths when more or fewer of
them fit at once. Here every image of an optimizer step has a place, and its draws follow from seed,
step and place.
"""

from collections.abc import Sequence
from typing import cast

import torch
from timm.layers.drop import DropPath as TimmDropPath
from torch import Tensor, nn

from mimbench.system.seeds import derive_seed


class DropPath(nn.Module):
    """timm's layer under draws that are made before the forward pass."""

    def __init__(self, drop_prob: float, calls: int) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.calls = calls
        """Times that a forward pass uses the layer: each has draws of its own."""
        self.drawn = torch.empty(0)
        """(calls, b) numbers from [0, 1)."""
        self.call = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some of its rows set to 0 and the others made up for them."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        # counted in a circle: a block that is computed again meets its own draws again
        drawn, self.call = self.drawn[self.call], (self.call + 1) % self.calls
        keep = 1 - self.drop_prob
        kept = (drawn < keep).to(x.dtype) / keep
        return x * kept.view(-1, *[1] * (x.ndim - 1))


class StochasticDepth:
    """All drop paths of a model."""

    def __init__(self, model: nn.Module, *, calls: int = 1) -> None:
        """Put our layers in the place of timm's.

        Args:
            model: The network.
            calls: Times that a forward pass uses each layer (detectron2's blocks: twice).
        """
        self.layers: list[DropPath] = []
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, TimmDropPath):
                    layer = DropPath(float(cast(float, child.drop_prob)), calls)
                    setattr(module, name, layer)
                    self.layers.append(layer)

    def draw(self, seeds: Sequence[int], device: torch.device) -> None:
        """Draw for the images of the next forward pass, one seed for each."""
        if not self.layers:
            return
        calls = self.layers[0].calls
        rows = [
            torch.rand(len(self.layers), calls, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        drawn = torch.stack(rows, dim=-1).to(device, non_blocking=True)
        for layer, numbers in zip(self.layers, drawn, strict=True):
            layer.drawn, layer.call = numbers, 0


def image_seeds(seed: int, step: int, first: int, count: int) -> list[int]:
    """Return a seed for each image of a micro-batch.

    Args:
        seed: The run's.
        step: Optimizer steps taken before.
        first: Place of the micro-batch's first image within the effective batch.
        count: Images in the micro-batch.
    """
    return [derive_seed(seed, step, first + place, 11) for place in range(count)]
