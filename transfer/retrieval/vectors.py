"""Image vectors for retrieval: whole images of any shape, at one scale or the mean of several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.data.lists import ImageList
from mimbench.features.bank import BankSpec, FeatureBank, open_bank
from mimbench.features.extract import fill
from mimbench.features.search import Floats
from mimbench.model import Network, Weights
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks
from mimbench.task import Machine


@dataclass(frozen=True, kw_only=True)
class WholeSpec(BankSpec):
    """Vectors of images of any shape."""

    scales: tuple[float, ...] = (1.0,)
    """Each image is seen at these sizes (bilinear), and its vectors are averaged."""


@dataclass(frozen=True, kw_only=True)
class WholeBank(FeatureBank):
    """A bank whose images are computed one at a time: their shapes differ."""

    def compute(self, network: Network, images: Tensor, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the last block's vectors, the mean over the scales."""
        spec = self.spec
        assert isinstance(spec, WholeSpec)
        stride = max(level.stride for level in _levels(network))
        found: list[dict[str, Tensor]] = []
        for scale in spec.scales:
            seen = images if scale == 1 else _scaled(images, scale)
            height, width = (side // stride * stride for side in seen.shape[2:])
            if not height or not width:
                raise UserError(
                    f"{self.images.names[rows[0]]} has {seen.shape[2]}x{seen.shape[3]} pixels at "
                    f"scale {scale:g}, less than a patch of {stride}; raise image_size"
                )
            # as a convolution of this stride drops the strip that fills no patch
            found.append(network.vectors(seen[:, :, :height, :width], spec.blocks))
        return {name: torch.stack([f[name] for f in found]).mean(dim=0) for name in found[0]}


def _levels(network: Any) -> Any:
    return network.spec.levels


def _scaled(images: Tensor, scale: float) -> Tensor:
    return F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def whole_bank(
    weights: Weights, images: ImageList, spec: WholeSpec, machine: Machine, ranks: Ranks
) -> FeatureBank:
    """Return the complete bank, computing only the shards that are not there yet."""
    plain = open_bank(weights, images, spec)
    bank = WholeBank(folder=plain.folder, images=images, spec=spec)
    # shapes differ: no two images make a batch
    fill(bank, spec.key(weights, images), weights, replace(machine, max_batch=1), ranks)
    return bank


def unit(features: Tensor) -> Floats:
    """Return float32 vectors of unit length, as the search reads them."""
    return np.ascontiguousarray(F.normalize(features, dim=1).numpy(), dtype=np.float32)
