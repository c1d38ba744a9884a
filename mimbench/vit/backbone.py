"""From weights to features: one sealed forward that normalises, so that callers never do."""

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.vit.network import Vit, build_vit, load_encoder
from mimbench.vit.normalise import Normalisation
from mimbench.vit.weights import VitWeights


class Features(NamedTuple):
    """Tokens of one block for a batch of images."""

    cls: Tensor
    """(b, d); the mean of several class tokens, of the patches where there is none."""
    patches: Tensor
    """(b, h, w, d)"""
    registers: Tensor
    """(b, r, d), r may be 0."""


class Backbone(nn.Module):
    """A ViT behind one contract: images (b, 3, H, W) in [0, 1] go in, features come out."""

    def __init__(self, vit: Vit) -> None:
        super().__init__()
        self.vit = vit
        self.spec = vit.spec
        self.normalise = Normalisation(self.spec.mean, self.spec.std)

    def forward(self, images: Tensor) -> Features:
        """Return the features after the final norm."""
        return self.blocks(images, [self.spec.depth - 1], norm=True)[0]

    def blocks(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Features]:
        """Return the features after each of the given blocks (0-based, ascending).

        Args:
            images: (b, 3, H, W) in [0, 1]; sides divisible by the patch size.
            blocks: Which blocks' outputs to return.
            norm: Pass each through the final norm.
        """
        tokens = self._tokens(images, blocks, norm=norm)
        p = self.spec.patch_size
        return [self._split(t, (images.shape[2] // p, images.shape[3] // p)) for t in tokens]

    def pyramid(self, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Return patch maps (b, d, h, w) after each of the given blocks, without norm."""
        return [f.patches.permute(0, 3, 1, 2) for f in self.blocks(images, blocks, norm=False)]

    def pooled(self, features: Features) -> Tensor:
        """Return the family's own image vector (b, d): class token or (normed) mean of patches."""
        if self.spec.pool == "cls":
            return features.cls
        return self.vit.fc_norm(features.patches.mean(dim=(1, 2)))

    def vectors(self, images: Tensor, blocks: int) -> dict[str, Tensor]:
        """Return cls.n and avg.n (b, d) after the final norm, for the last `blocks` blocks."""
        depth = self.spec.depth
        wanted = list(range(depth - min(blocks, depth), depth))
        out: dict[str, Tensor] = {}
        for block, features in zip(wanted, self.blocks(images, wanted, norm=True), strict=True):
            out[f"cls.{depth - block}"] = features.cls
            # fine-tuned MAE has its norm after the mean
            out[f"avg.{depth - block}"] = self.vit.fc_norm(features.patches.mean(dim=(1, 2)))
        return out

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the last block's patches (b, d, h, w), without norm."""
        return self.pyramid(images, [self.spec.depth - 1])

    def _tokens(self, images: Tensor, blocks: Sequence[int], *, norm: bool) -> list[Tensor]:
        p, (height, width) = self.spec.patch_size, images.shape[2:]
        if height % p or width % p:
            raise UserError(
                f"images of {height}x{width} do not divide into patches of {p}; resize or pad"
            )
        if list(blocks) != sorted(set(blocks)) or not all(0 <= b < self.spec.depth for b in blocks):
            raise ValueError(
                f"blocks {list(blocks)} are not ascending within 0..{self.spec.depth - 1}"
            )
        vit = self.vit
        grid = (height // p, width // p)
        x = vit.embed(self.normalise(images))
        out: list[Tensor] = []
        for i in range(blocks[-1] + 1):
            x = vit.run_block(i, x, grid)
            if i in blocks:
                out.append(cast(Tensor, vit.norm(x)) if norm else x)
        return out

    def _split(self, tokens: Tensor, grid: tuple[int, int]) -> Features:
        first = self.spec.first_tokens
        patches = tokens[:, self.spec.prefix_tokens :]
        if first > 1:
            cls = tokens[:, :first].mean(dim=1)
        else:
            cls = tokens[:, 0] if first else patches.mean(dim=1)
        return Features(
            cls=cls,
            patches=patches.unflatten(1, grid),
            registers=tokens[:, first : self.spec.prefix_tokens],
        )


def build_backbone(weights: VitWeights) -> Backbone:
    """Return the frozen, evaluating backbone that the weights describe, whatever its positions."""
    vit = build_vit(weights.spec)
    load_encoder(vit, weights)
    return Backbone(vit).eval().requires_grad_(requires_grad=False)
