"""Transformer blocks, with a shortcut where only the last tokens' answers are wanted."""

from collections.abc import Callable, Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.models.linear import Linear, linear


class Attention(nn.Module):
    """Self-attention in one fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """Return what tokens (b, n, d) gather; for the `last` tokens only if that is given."""
        b, n, width = x.shape
        if last is None:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = linear(x[:, n - last :], weight[:width], bias[:width])
            q = q.reshape(b, last, self.heads, -1).transpose(1, 2)
            kv = linear(x, weight[width:], bias[width:])
            k, v = kv.reshape(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, -1, width))


class Mlp(nn.Module):
    """Two linear maps around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped tokens."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=eps), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=eps), Mlp(width, hidden)

    def forward(self, x: Tensor, last: int | None = None, keep: Tensor | None = None) -> Tensor:
        """Return the tokens after the block.

        Args:
            x: The tokens (b, n, d).
            last: Answer for so many last ones only.
            keep: Factors (b, 2) of attention and MLP: stochastic depth.
        """
        kept = x if last is None else x[:, x.shape[1] - last :]
        if keep is None:
            kept = kept + self.attn(self.norm1(x), last)
            return kept + self.mlp(self.norm2(kept))
        one, other = keep.to(x.dtype).view(-1, 2, 1, 1).unbind(1)
        kept = kept + one * self.attn(self.norm1(x), last)
        return kept + other * self.mlp(self.norm2(kept))


def run_block(
    block: Callable[..., Tensor], x: Tensor, *rest: int | Tensor | None, recompute: bool
) -> Tensor:
    """Return block(x, *rest); with `recompute` its inside is computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, x, *rest, use_reentrant=False))
    return block(x, *rest)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, last: int, *, recompute: bool) -> Tensor:
    """Return what blocks, one after the other, give for the last tokens; no other leaves the last."""
    *before, final = blocks
    for block in before:
        x = run_block(block, x, recompute=recompute)
    return run_block(final, x, last, recompute=recompute)
