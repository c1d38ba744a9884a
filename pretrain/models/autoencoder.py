"""The networks: a ViT that sees some patches, and decoders that fill in or judge the others.

Encoder tensors carry timm's names. Images enter as patches, channel fastest, so that hidden ones are
dropped before anything is computed for them. A decoder sees [class, visible, hidden] and answers
for its last tokens only: its last block computes queries, MLP and head for those alone.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mimbench.vit.positions import resize_table, sincos_table
from mimbench.vit.weights import VitSpec
from pretrain.models.blocks import Block, run_block
from pretrain.models.decoders import Decoder, DecoderConfig, TokenHead
from pretrain.models.initial import Source, fill, stream
from pretrain.models.linear import Linear, linear


def to_patches(images: Tensor, size: int) -> Tensor:
    """Return images (b, 3, H, W) as patches (b, n, size * size * 3): rows, columns, channels."""
    b, c, height, width = images.shape
    x = images.reshape(b, c, height // size, size, width // size, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, size * size * c)


def from_patches(patches: Tensor, size: int, grid: tuple[int, int]) -> Tensor:
    """Return patches (b, n, size * size * 3) as images (b, 3, H, W)."""
    x = patches.reshape(len(patches), *grid, size, size, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * size, grid[1] * size)


def take(values: Tensor, indices: Tensor) -> Tensor:
    """Return the rows of (b, n, d), or of a table (1, n, d), at indices (b, k)."""
    if len(values) == 1:
        return values[0][indices]
    return values.gather(1, indices.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def split(mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Return the raster indices of visible and of hidden patches, `hidden` in each row of the mask."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - hidden
    return order[:, :visible], order[:, visible:]


class PatchEmbed(nn.Module):
    """The patch embedding: a convolution's weights, applied to patches that are already cut out."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, stride=size)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the embeddings of patches (b, k, size * size * 3)."""
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(patches, weight, cast(Tensor, self.proj.bias))


class Encoder(nn.Module):
    """A plain ViT over any subset of patches."""

    pos_embed: Tensor

    def __init__(self, spec: VitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.recompute = False
        self.patch_embed = PatchEmbed(spec.embed_dim, spec.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.embed_dim))
        table = sincos_table(spec.embed_dim, spec.grid, class_row=True)
        self.register_buffer("pos_embed", table)
        self.blocks = nn.ModuleList(
            Block(spec.embed_dim, spec.num_heads, spec.mlp_dim, spec.norm_eps)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)

    def forward(
        self, patches: Tensor, visible: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return the tokens (b, 1 + k, d) after the final norm: class token, then raster order.

        Args:
            patches: All patches (b, n, size * size * 3).
            visible: Indices (b, k) of those to look at; by default all of them.
            grid: Rows and columns of the patches where they differ from the specification's.
        """
        return self.norm(self.run(self.embed(patches, visible, grid)))

    def run(self, x: Tensor, blocks: int | None = None) -> Tensor:
        """Return the tokens after the first `blocks` blocks, by default after all of them."""
        for block in self.blocks[:blocks]:
            x = run_block(block, x, recompute=self.recompute)
        return x

    def outputs(self, patches: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Return the tokens that enter the first block and those after each, before any norm."""
        found = [self.embed(patches, visible)]
        for block in self.blocks:
            found.append(run_block(block, found[-1], recompute=self.recompute))
        return found

    def embed(
        self, patches: Tensor, visible: Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return the tokens that enter the first block."""
        table = positions(self.pos_embed, self.spec, grid)
        if visible is None:
            x = self.patch_embed(patches) + table[:, 1:]
        else:
            x = self.patch_embed(take(patches, visible)) + take(table[:, 1:], visible)
        cls = (self.cls_token + table[:, :1]).expand(len(x), -1, -1)
        return torch.cat([cls.to(x.dtype), x], dim=1)


def positions(table: Tensor, spec: VitSpec, grid: tuple[int, int] | None) -> Tensor:
    """Return a position table with a class row, resized where the grid is not the specification's."""
    if grid is None or grid == spec.grid:
        return table
    return resize_table(table, grid=spec.grid, to=grid, prefix=1, rule=spec.position_rule)


class Neck(nn.Module):
    """What both decoders start from: embedded tokens, mask tokens, positions."""

    pos_embed: Tensor

    def __init__(self, spec: VitSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Linear(spec.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sincos_table(width, spec.grid, class_row=True))

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
        x = self.embed(tokens).to(table.dtype)
        if visible is None or hidden is None:
            return x + table
        seen = x[:, 1:] + take(table[:, 1:], visible)
        masks = self.mask_token + take(table[:, 1:], hidden)
        return torch.cat([x[:, :1] + table[:, :1], seen, masks], dim=1)


class Outputs(NamedTuple):
    """What the student says about one batch."""

    latent: Tensor
    """(b, 1 + k, d): class token and visible patches."""
    prediction: Tensor
    """(b, m, outputs): the hidden patches, raster order."""
    difficulty: Tensor | None
    """(b, m): predicted loss of the hidden patches, if there is a predictor."""


class MaskedAutoencoder(nn.Module):
    """The student: encoder, reconstruction decoder and, for HPM, a loss predictor."""

    predictor: Decoder | TokenHead | None

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
            tokens={
                "encoder.cls_token": self.encoder.cls_token,
                "neck.mask_token": self.neck.mask_token,
            },
            folded={}
            if self.predictor is None
            else {"predictor.pred": 3 * self.spec.patch_size**2},
        )

    def forward(self, patches: Tensor, visible: Tensor, hidden: Tensor) -> Outputs:
        """Return latent tokens and what the decoders say about the hidden patches."""
        return self.decode(self.encoder(patches, visible), visible, hidden)

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
