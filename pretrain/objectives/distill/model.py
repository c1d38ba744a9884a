"""Student and teacher: a ViT with learned positions whose hidden patches are replaced, and a head."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mimbench.vit.network import Vit, assemble
from mimbench.vit.weights import VitSpec
from pretrain.models.attention import vit_attention
from pretrain.objectives.distill.config import HeadConfig
from pretrain.objectives.distill.head import ProjectionHead
from pretrain.objectives.distill.loss import Logits


class MaskableVit(Vit):
    """A ViT that can take one vector for hidden patches."""

    recompute = False
    """Compute the inside of each block again in the backward pass."""

    def embed_masked(self, images: Tensor, mask: Tensor, token: Tensor) -> Tensor:
        """Return the tokens that enter the first block; hidden ones keep their positions only."""
        x = self.patch_embed(images)
        hidden = mask.view(*x.shape[:3], 1)
        x = torch.where(hidden, token.to(x.dtype), x)
        return self.norm_pre(self._pos_embed(x))

    def finish(self, x: Tensor, grid: tuple[int, int], first: int = 0) -> Tensor:
        """Return the tokens after the blocks from `first` on and the final norm."""
        for index in range(first, self.spec.depth):
            if self.recompute and torch.is_grad_enabled():
                x = cast(Tensor, checkpoint(self.run_block, index, x, grid, use_reentrant=False))
            else:
                x = self.run_block(index, x, grid)
        return cast(Tensor, self.norm(x))


class VitWithHead(nn.Module):
    """A ViT and its projection head."""

    def __init__(self, spec: VitSpec, head: HeadConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = assemble(MaskableVit, spec, drop_path=drop_path)
        self.head = ProjectionHead(spec.embed_dim, head)


class Student(VitWithHead):
    """Sees masked global crops and whole local ones."""

    def __init__(self, spec: VitSpec, head: HeadConfig, *, drop_path: float, patches: bool) -> None:
        super().__init__(spec, head, drop_path=drop_path)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, spec.embed_dim))
        if self.backbone.cls_token is not None:
            # timm starts it near zero, DINO as it starts positions
            nn.init.trunc_normal_(self.backbone.cls_token, std=0.02)
        self.patches = patches

    def forward(self, images: Tensor, mask: Tensor, local: Tensor | None) -> Logits:
        """Return logits.

        Args:
            images: Global crops (2 b, 3, S, S), crop after crop.
            mask: (2 b, n), True = hidden.
            local: Local crops (l b, 3, s, s), crop after crop; never masked.
        """
        vit = self.backbone
        tokens = vit.finish(vit.embed_masked(images, mask, self.mask_token), self.spec.grid)
        said = None
        if local is not None:
            p = self.spec.patch_size
            grid = (local.shape[2] // p, local.shape[3] // p)
            said = self.head(vit.finish(vit.embed(local), grid)[:, 0])
        patches = self.head.patches(tokens[:, 1:]) if self.patches else None
        return Logits(self.head(tokens[:, 0]), patches, said)


class DistillTeacher(VitWithHead):
    """The moving average; sees whole global crops."""

    def __init__(self, student: Student, head: HeadConfig) -> None:
        super().__init__(student.spec, head)
        own = student.state_dict()
        self.load_state_dict({name: own[name] for name in self.state_dict()})
        self.requires_grad_(requires_grad=False).eval()
        theirs = dict(student.named_parameters())
        self.pairs = [(p, theirs[name]) for name, p in self.named_parameters()]
        self.patches = student.patches

    @torch.no_grad()
    def forward(self, images: Tensor, *, attention: bool) -> tuple[Logits, Tensor | None]:
        """Return logits, and if asked for the class token's attention (2 b, n), mean over heads."""
        vit, grid = self.backbone, self.spec.grid
        x, first, row = vit.embed(images), 0, None
        if attention:
            first = self.spec.depth - 1
            for index in range(first):
                x = vit.run_block(index, x, grid)
            row = vit_attention(vit, x, grid).mean(dim=1)
        tokens = vit.finish(x, grid, first)
        patches = self.head.patches(tokens[:, 1:]) if self.patches else None
        return Logits(self.head(tokens[:, 0]), patches), row

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move every parameter: momentum x own + (1 - momentum) x the student's."""
        own: list[Tensor] = [p for p, _ in self.pairs]
        get_ema_multi_avg_fn(momentum)(own, [p.detach() for _, p in self.pairs], None)
