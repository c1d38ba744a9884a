"""Decoders: [class, visible, hidden] go in, answers for the last tokens come out."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pretrain.models.blocks import Block, run_block, run_blocks
from pretrain.models.linear import Linear


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder; reconstruction and loss prediction have one each, of the same shape."""

    width: int = 512
    depth: int = 8
    heads: int = 16
    kind: Literal["self", "cross"] = "self"
    """Whether hidden patches see each other, or the visible ones only (CrossMAE)."""
    features: tuple[int, ...] | None = None
    """`cross`: the encoder's blocks whose outputs are mixed, 0 for its input; by default all."""
    self_attention: bool = False
    """`cross`: let queries also see each other."""

    def __post_init__(self) -> None:
        if self.kind == "self" and (self.features is not None or self.self_attention):
            raise ValueError("features and self_attention belong to decoder.kind: cross")


def answer(norm: nn.Module, pred: nn.Linear, x: Tensor) -> Tensor:
    """Return a head's outputs (b, k, outputs) for tokens."""
    x = norm(x)
    if pred.out_features > 1:
        return pred(x)
    # one number for a patch is ranked, and in half precision patches would tie
    with torch.autocast(x.device.type, enabled=False):
        return pred(x.to(pred.weight.dtype))


class TokenHead(nn.Module):
    """A norm and a linear map over another network's tokens: the loss predictor that shares a trunk."""

    def __init__(self, width: int, outputs: int, eps: float) -> None:
        super().__init__()
        self.recompute = False
        self.norm = nn.LayerNorm(width, eps=eps)
        self.pred = Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (b, k, outputs) for tokens."""
        return answer(self.norm, self.pred, x)


class Decoder(nn.Module):
    """Blocks, a norm and a linear head over the tokens that both decoders share."""

    def __init__(self, config: DecoderConfig, outputs: int, eps: float) -> None:
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, 4 * config.width, eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=eps)
        self.pred = Linear(config.width, outputs)

    def forward(self, x: Tensor, last: int) -> Tensor:
        """Return the head's outputs (b, last, outputs) for the last tokens."""
        x = run_blocks(self.blocks, x, last, recompute=self.recompute)
        return answer(self.norm, self.pred, x)

    def with_exit(self, x: Tensor, last: int, head: nn.Module, after: int) -> tuple[Tensor, Tensor]:
        """Return the outputs, and those of a further head that reads the tokens after some blocks."""
        depth = len(self.blocks)
        if after == depth:
            x = run_blocks(self.blocks, x, last, recompute=self.recompute)
            return answer(self.norm, self.pred, x), head(x)
        for block in self.blocks[:after]:
            x = run_block(block, x, recompute=self.recompute)
        early = head(x[:, x.shape[1] - last :])
        x = run_blocks(self.blocks[after:], x, last, recompute=self.recompute)
        return answer(self.norm, self.pred, x), early
