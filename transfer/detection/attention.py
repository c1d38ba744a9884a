"""The two options that replace how detectron2's ViT computes, and nothing of what it computes.

`fuse` runs attention through `scaled_dot_product_attention`; `recompute` stores no activations
inside blocks. Both turn existing modules into subclasses, so that names and parameters stay.
"""

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import get_rel_pos
from detectron2.modeling.backbone.vit import Attention, Block, ViT
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from transfer.detection.trunk import ModernBlock, RecomputedModernBlock


class FusedAttention(Attention):
    """detectron2's attention, exactly, without the table of all pairs where the kernel allows.

    The decomposed bias of query q and key k is `height[q, row(k)] + width[q, column(k)]`: an inner
    product of (height, width) of the query with two one-hot codes of the key. Appended to queries
    and keys it becomes part of the logits, and no bias over all pairs is ever stored.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Attend over a (b, h, w, d) map."""
        B, H, W, _ = x.shape
        heads = self.num_heads
        qkv = self.qkv(x).reshape(B, H * W, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.use_rel_pos:
            q, k = self._with_bias(q, k, (H, W))
            v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.use_rel_pos:
            out = out[..., : qkv.shape[-1]]
        return self.proj(out.transpose(1, 2).reshape(B, H, W, -1))

    def _with_bias(self, q: Tensor, k: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        H, W = grid
        maps = q.unflatten(2, grid)
        height = torch.einsum("bnhwc,hkc->bnhwk", maps, get_rel_pos(H, H, self.rel_pos_h).to(q))
        width = torch.einsum("bnhwc,wkc->bnhwk", maps, get_rel_pos(W, W, self.rel_pos_w).to(q))
        # the kernel scales all logits, the bias must come out unscaled
        bias = torch.cat([height, width], dim=-1).flatten(2, 3) / self.scale
        codes = _place_codes(grid, k).expand(*k.shape[:2], -1, -1)
        spare = -(q.shape[-1] + H + W) % 8
        return F.pad(torch.cat([q, bias], -1), (0, spare)), F.pad(
            torch.cat([k, codes], -1), (0, spare)
        )


def _place_codes(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Return (h * w, h + w): for each place one 1 for its row and one for its column."""
    H, W = grid
    rows = torch.eye(H, dtype=like.dtype, device=like.device).repeat_interleave(W, dim=0)
    columns = torch.eye(W, dtype=like.dtype, device=like.device).repeat(H, 1)
    return torch.cat([rows, columns], dim=1)


class RecomputedBlock(Block):
    """detectron2's block with its activations computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; dropped paths are the same in both passes."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False)  # pyright: ignore[reportReturnType]


def fuse(vit: ViT) -> None:
    """Let every block attend through torch's fused attention."""
    for module in vit.modules():
        if type(module) is Attention:
            module.__class__ = FusedAttention


def recompute(vit: ViT) -> None:
    """Keep no activations inside blocks (detectron2's own option needs fairscale)."""
    for module in vit.modules():
        if type(module) is Block:
            module.__class__ = RecomputedBlock
        elif type(module) is ModernBlock:
            module.__class__ = RecomputedModernBlock
