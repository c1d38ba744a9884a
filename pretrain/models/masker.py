"""CL-MAE's masking network, and what it is trained by beside the reconstruction."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mimbench.vit.weights import VitSpec
from pretrain.models.autoencoder import MaskedAutoencoder
from pretrain.models.blocks import Block, run_block
from pretrain.models.initial import Source, fill_linear
from pretrain.models.linear import Linear

DEPTH, HEADS, EPS = 5, 4, 1e-5
WIDTH, PEAK = 0.12, 0.12 * (2 * torch.pi) ** 0.5
"""Of the bump at a half: its standard deviation, and its height."""
NEARNESS = 0.1
"""How fast the likeness of two masks falls with their distance."""


class MaskingNetwork(nn.Module):
    """A few blocks over embedded patches; from a token of its own, how much each place is to be seen."""

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        width = spec.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, HEADS, 4 * width, EPS) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = Linear(width, spec.grid[0] * spec.grid[1])

    def initialise(self, source: Source) -> None:
        """Set initial values from random numbers of this source."""
        fill_linear(self, source, prefix="masker.")
        with source("masker.cls_token"):
            nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, n) in (0, 1) for embedded patches (b, n, d); near 1: to be seen."""
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            x = run_block(block, x, recompute=False)
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x[:, 0].float())).sigmoid()


def gated_losses(
    student: MaskedAutoencoder,
    patches: Tensor,
    keep: Tensor,
    losses: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return each patch's loss (b, n) when every embedded patch is scaled by how much it is to be seen.

    All patches are encoded and decoded, so no mask token is left. Attention knows no order: sorting the
    tokens, as the released code does, changes nothing.

    Args:
        student: The autoencoder.
        patches: All patches (b, n, size * size * 3).
        keep: Their factors (b, n).
        losses: The loss (b, n) of predictions for all places (b, n).
    """
    encoder, first = student.encoder, student.spec.class_tokens
    tokens = encoder.embed(patches)
    seen = tokens[:, first:] * keep.unsqueeze(2).to(tokens.dtype)
    latent = encoder.norm(encoder.run(torch.cat([tokens[:, :first], seen], dim=1)))
    n = patches.shape[1]
    prediction = student.reconstructor(student.neck(latent), n)
    places = torch.arange(n, device=patches.device).expand(len(patches), -1)
    return losses(cast(Tensor, prediction), places)


def reconstruction_term(losses: Tensor, keep: Tensor) -> Tensor:
    """Return the loss where patches are not to be seen, one number for the batch."""
    return (losses * (1 - keep)).sum() / (1 - keep).sum()


def gauss_term(keep: Tensor) -> Tensor:
    """Return the mean height (of a bump around a half) at which values lie."""
    return (-(keep - 0.5).square() / (2 * WIDTH**2)).exp().mean() * PEAK


def kl_term(keep: Tensor, share: float) -> Tensor:
    """Return the mean divergence of the images' shares that are to be seen from the wanted one."""
    q = keep.mean(dim=1)
    return (q * (q / share).log() + (1 - q) * ((1 - q) / (1 - share)).log()).mean()


def diversity_term(keep: Tensor) -> Tensor:
    """Return how alike the masks of two images are, on average; 0 for a single image."""
    b = len(keep)
    if b < 2:
        return keep.sum() * 0
    rows, columns = torch.triu_indices(b, b, 1, device=keep.device)
    distance = (keep[rows] - keep[columns]).norm(dim=1)
    return (-NEARNESS * distance).exp().mean()
