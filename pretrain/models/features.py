"""Features of a frozen network as reconstruction targets: DINO's, CLIP's, or any other encoder's.

The released code feeds CLIP images with ImageNet's mean and deviation and drops the class token;
here each network gets its own normalisation, the class token is dropped as there. For CLIP the
visual projection is applied to every normalised patch token, where the file holds one.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit
from mimbench.checkpoints.reading.content import read_raw
from mimbench.vit.backbone import build_backbone

PROJECTION = "visual.proj"


class FeatureNetwork(nn.Module):
    """A frozen encoder that gives one vector for each of the student's patches."""

    projection: Tensor | None

    def __init__(self, path: Path, grid: tuple[int, int]) -> None:
        """Read the network.

        Args:
            path: Any checkpoint that mimbench reads.
            grid: The student's rows and columns of patches.
        """
        super().__init__()
        weights = read_vit(path, who="a target of features")
        self.backbone, self.grid = build_backbone(weights), grid
        projection = None
        if weights.format == "clip":
            states = read_raw(path).networks.values()
            found = [state[PROJECTION] for state in states if PROJECTION in state]
            projection = found[0].float() if found else None
        self.register_buffer("projection", projection)

    @property
    def width(self) -> int:
        """Numbers of one patch's feature."""
        if self.projection is not None:
            return self.projection.shape[1]
        return self.backbone.spec.embed_dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return features (b, n, width) of whole images (b, 3, H, W) in [0, 1]."""
        size = [side * self.backbone.spec.patch_size for side in self.grid]
        if list(images.shape[2:]) != size:
            # as many patches as the student has
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        found = self.backbone(images).patches.flatten(1, 2)
        return found if self.projection is None else found @ self.projection
