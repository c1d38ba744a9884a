"""A decoder whose queries look at what is visible and at nothing else (CrossMAE, Fu et al. 2024).

Queries never see each other, so what is predicted for a patch does not depend on which others are
asked: any share of the hidden patches can be. Each block reads its own mixture of the encoder's
blocks. Written from the method's published rules and numbers, not from its code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.vit.weights import VitSpec
from pretrain.models.blocks import Attention, Mlp, run_block
from pretrain.models.decoders import DecoderConfig, answer
from pretrain.models.encoder import fixed_table, take
from pretrain.models.linear import Linear


class CrossAttention(nn.Module):
    """Queries of one width gather from tokens of another."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = Linear(width, width), Linear(source, 2 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what queries (b, m, width) gather from tokens (b, k, source)."""
        b, m, width = x.shape
        q = self.q(x).reshape(b, m, self.heads, -1).transpose(1, 2)
        k, v = self.kv(y).reshape(b, y.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, m, width))


class CrossBlock(nn.Module):
    """A pre-norm block: cross-attention and MLP, before them self-attention if that is wanted."""

    def __init__(self, config: DecoderConfig, source: int, eps: float) -> None:
        super().__init__()
        width = config.width
        self.norm0 = nn.LayerNorm(width, eps=eps) if config.self_attention else None
        self.self_attn = Attention(width, config.heads) if config.self_attention else None
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))
        self.cross_attn = CrossAttention(width, source, config.heads)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the queries after the block."""
        if self.norm0 is not None and self.self_attn is not None:
            x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class CrossDecoder(nn.Module):
    """Cross blocks, a norm and a linear head."""

    def __init__(
        self, config: DecoderConfig, source: int, features: int, outputs: int, eps: float
    ) -> None:
        """Build it.

        Args:
            config: Width, depth and heads.
            source: Width of the encoder.
            features: How many of the encoder's block outputs (and its input) are mixed.
            outputs: Numbers for each patch.
            eps: Of the norms.
        """
        super().__init__()
        self.recompute = False
        self.mix = nn.Parameter(torch.empty(config.depth, features))
        nn.init.normal_(self.mix, std=features**-0.5)
        self.norms = nn.ModuleList(nn.LayerNorm(source, eps=eps) for _ in range(config.depth))
        self.blocks = nn.ModuleList(CrossBlock(config, source, eps) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=eps)
        self.pred = Linear(config.width, outputs)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Return the outputs (b, m, outputs) for queries (b, m, width) and features (f, b, k, d)."""
        return answer(self.norm, self.pred, self.run(x, features))

    def with_exit(
        self, x: Tensor, features: Tensor, head: nn.Module, after: int
    ) -> tuple[Tensor, Tensor]:
        """Return the outputs, and those of a further head that reads queries after some blocks."""
        early = self.run(x, features, 0, after)
        done = self.run(early, features, after)
        return answer(self.norm, self.pred, done), head(early)

    def run(self, x: Tensor, features: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Return queries after blocks `first` to `stop` (all), reading features (f, b, k, source)."""
        for index in range(first, len(self.blocks) if stop is None else stop):
            mixed = torch.einsum("f,fbkd->bkd", self.mix[index].to(features.dtype), features)
            x = run_block(self.blocks[index], x, self.norms[index](mixed), recompute=self.recompute)
        return x


class Queries(nn.Module):
    """What a cross decoder asks with: a mask token at each place that is to be predicted."""

    pos_embed: Tensor

    def __init__(self, spec: VitSpec, width: int) -> None:
        super().__init__()
        self.first = spec.class_tokens
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", fixed_table(spec, width))

    def forward(self, places: Tensor) -> Tensor:
        """Return queries (b, m, width) for places (b, m)."""
        return self.mask_token + take(self.pos_embed[:, self.first :], places)
