"""The networks: a ViT that sees some patches, and decoders that fill in or judge the others.

A decoder sees [class, visible, hidden] and answers for its last tokens only: its last block computes
queries, MLP and head for those alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimbench.vit.weights import VitSpec
from pretrain.models.decoders import Decoder, DecoderConfig, TokenHead
from pretrain.models.encoder import (
    Encoder,
    EncoderNoise,
    fixed_table,
    learn_positions,
    positions,
    take,
)
from pretrain.models.initial import Source, fill, stream
from pretrain.models.linear import Linear


def to_patches(images: Tensor, size: int) -> Tensor:
    """Return images (b, 3, H, W) as patches (b, n, size * size * 3): rows, columns, channels."""
    b, c, height, width = images.shape
    x = images.reshape(b, c, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * c)


def from_patches(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Return patches (b, n, size * size * 3) as images (b, 3, H, W)."""
    x = patches.reshape(len(patches), *grid, size, size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * size, grid[1] * size)


def split(mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Return the raster indices of visible and of hidden patches, `hidden` in each row of the mask."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - hidden
    return order[:, :visible], order[:, visible:]


class Neck(nn.Module):
    """What both decoders start from: embedded tokens, mask tokens, positions."""

    pos_embed: Tensor

    def __init__(self, spec: VitSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Linear(spec.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", fixed_table(spec, width))

    def forward(
        self,
        tokens: Tensor,
        visible: Tensor | None = None,
        hidden: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Return [class, visible, hidden] for the encoder's tokens; all are visible by default."""
        table = positions(self.pos_embed, self.spec, grid)
        # as in the encoder, what runs from block to block stays in full precision
        x, first = self.embed(tokens).to(table.dtype), self.spec.class_tokens
        if visible is None or hidden is None:
            return x + table
        seen = x[:, first:] + take(table[:, first:], visible)
        masks = self.mask_token + take(table[:, first:], hidden)
        return torch.cat([x[:, :first] + table[:, :first], seen, masks], dim=1)


class Outputs(NamedTuple):
    """What the student says about one batch."""

    latent: Tensor
    """(b, c + k, d): class tokens and visible patches."""
    prediction: Tensor
    """(b, m, outputs): the hidden patches, raster order."""
    difficulty: Tensor | None
    """(b, m): predicted loss of the hidden patches, if there is a predictor."""


class MaskedAutoencoder(nn.Module):
    """The student: encoder, reconstruction decoder and, for HPM, a loss predictor."""

    predictor: Decoder | TokenHead | None
    secondary_token: nn.Parameter | None
    """Stands for visible patches that are veiled (UM-MAE's secondary masking)."""
    learned_positions = False

    def __init__(
        self,
        spec: VitSpec,
        decoder: DecoderConfig,
        *,
        outputs: int | None,
        predictor: bool,
        leave: int | None = None,
    ) -> None:
        """Build the networks with MAE's initial values.

        Args:
            spec: The encoder.
            decoder: The shape of each decoder.
            outputs: Numbers that the reconstruction head gives for a patch; by default its pixels.
            predictor: Whether there is a loss predictor.
            leave: Block of the reconstruction decoder after which the loss predictor, then a mere
                head, reads the tokens; by default it is a decoder of its own.
        """
        super().__init__()
        self.spec, self.leave = spec, leave
        self.encoder = Encoder(spec)
        self.neck = Neck(spec, decoder.width)
        pixels = 3 * spec.patch_size**2
        self.reconstructor = Decoder(decoder, outputs or pixels, spec.norm_eps)
        self.register_parameter("secondary_token", None)
        self.predictor = None
        if predictor and leave is not None:
            self.predictor = TokenHead(decoder.width, 1, spec.norm_eps)
        elif predictor:
            self.predictor = Decoder(decoder, 1, spec.norm_eps)
        self.initialise(stream)

    def initialise(self, source: Source) -> None:
        """Set MAE's initial values from random numbers of this source."""
        fill(
            self,
            source,
            embedding="encoder.patch_embed.proj",
            tokens=self.tokens(),
            folded={}
            if self.predictor is None
            else {"predictor.pred": 3 * self.spec.patch_size**2},
        )

    def tokens(self) -> dict[str, nn.Parameter]:
        """Return what starts as normal noise, by name."""
        found = {
            "encoder.cls_token": self.encoder.cls_token,
            "neck.mask_token": self.neck.mask_token,
        }
        if self.secondary_token is not None:
            found["secondary_token"] = self.secondary_token
        if self.learned_positions:
            tables = {"encoder.pos_embed": self.encoder, "neck.pos_embed": self.neck}
            found |= {name: part.get_parameter("pos_embed") for name, part in tables.items()}
        return found

    def extend(self, *, secondary: bool, positions: bool) -> None:
        """Add what only some recipes learn: a token for veiled patches, position tables."""
        if secondary:
            self.secondary_token = nn.Parameter(torch.zeros(1, 1, self.spec.embed_dim))
        if positions:
            learn_positions(self.encoder, self.neck)
            self.learned_positions = True
        if secondary or positions:
            self.initialise(stream)

    def forward(
        self, patches: Tensor, visible: Tensor, hidden: Tensor, noise: EncoderNoise | None = None
    ) -> Outputs:
        """Return latent tokens and what the decoders say about the hidden patches."""
        veil, keep = self.disturbed(noise)
        return self.decode(self.encoder(patches, visible, veil=veil, keep=keep), visible, hidden)

    def disturbed(
        self, noise: EncoderNoise | None
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """Return what the encoder takes of the noise: the veil with its token, and the factors."""
        if noise is None:
            return None, None
        if noise.veiled is None:
            return None, noise.keep
        assert self.secondary_token is not None
        return (noise.veiled, self.secondary_token), noise.keep

    def decode(self, latent: Tensor, visible: Tensor, hidden: Tensor) -> Outputs:
        """Return what the decoders say about the hidden patches, from the encoder's tokens."""
        shared, last = self.neck(latent, visible, hidden), hidden.shape[1]
        if self.predictor is None:
            return Outputs(latent, self.reconstructor(shared, last), None)
        if self.leave is not None:
            prediction, judged = self.reconstructor.with_exit(
                shared, last, self.predictor, self.leave
            )
        else:
            prediction, judged = self.reconstructor(shared, last), self.predictor(shared, last)
        return Outputs(latent, prediction, judged.squeeze(-1))

    def recompute(self) -> None:
        """Compute the inside of every block again in the backward pass: less memory, more time."""
        for part in (self.encoder, self.reconstructor, self.predictor):
            if part is not None:
                part.recompute = True
