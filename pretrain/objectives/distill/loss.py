"""iBOT's loss: the student's class token and hidden patches must say what the teacher says.

Logits come crop after crop: rows 0 to b - 1 belong to the first global crop, the next b to the
second. The teacher's are centred by moving averages, so that no output wins everywhere.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimbench.system.runtime import all_reduce_mean
from pretrain.objectives.distill.config import DistillObjectiveConfig

GLOBALS = 2


class Logits(NamedTuple):
    """Logits of one network."""

    cls: Tensor
    """(2 b, outputs)"""
    patches: Tensor | None
    """(2 b, n, outputs)"""
    local: Tensor | None = None
    """(crops x b, outputs): class tokens of the local crops."""


class DistillLoss(nn.Module):
    """The two cross-entropies and the teacher's two centres."""

    centre: Tensor
    patch_centre: Tensor

    def __init__(self, config: DistillObjectiveConfig, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("centre", torch.zeros(1, outputs))
        self.register_buffer("patch_centre", torch.zeros(1, 1, outputs))
        self.seen: list[tuple[Tensor, Tensor | None]] = []

    def forward(
        self, student: Logits, teacher: Logits, mask: Tensor, temperature: float
    ) -> dict[str, Tensor]:
        """Return the weighted sum and its terms; note what the centres will follow.

        Args:
            student: Logits of masked global and of local crops.
            teacher: Logits of the same global crops, unmasked.
            mask: (2 b, n), True = hidden from the student.
            temperature: The teacher's, in this epoch.
        """
        cls = self.class_loss(student, teacher, temperature)
        figures = {"cls": cls.detach()}
        total = self.config.cls_weight * cls
        if student.patches is not None and teacher.patches is not None:
            patch = self.patch_loss(student.patches, teacher.patches, mask, temperature)
            figures["patch"] = patch.detach()
            total = total + self.config.patch_weight * patch
        self.note(teacher)
        return {"loss": total, **figures}

    def class_loss(self, student: Logits, teacher: Logits, temperature: float) -> Tensor:
        """Return the mean over all pairs of a teacher's crop and another crop of the student's."""
        said = student.cls if student.local is None else torch.cat([student.cls, student.local])
        log_q = (said.float() / self.config.student_temperature).log_softmax(dim=-1)
        p = ((teacher.cls.float() - self.centre) / temperature).softmax(dim=-1).detach()
        b = len(teacher.cls) // GLOBALS
        with torch.autocast(p.device.type, enabled=False):
            # autocast would take the product in half precision, where a sum over a batch overflows
            pairs = -torch.einsum(
                "qbk,vbk->qv", p.unflatten(0, (GLOBALS, b)), log_q.unflatten(0, (-1, b))
            )
        same = torch.zeros_like(pairs, dtype=torch.bool).fill_diagonal_(fill_value=True)
        return pairs.masked_fill(same, 0.0).sum() / (pairs.numel() - min(pairs.shape)) / b

    def patch_loss(
        self, student: Tensor, teacher: Tensor, mask: Tensor, temperature: float
    ) -> Tensor:
        """Return the mean over crops of each one's mean over hidden patches; whole crops give 0."""
        log_q = (student.float() / self.config.student_temperature).log_softmax(dim=-1)
        p = ((teacher.float() - self.patch_centre) / temperature).softmax(dim=-1).detach()
        each = -(p * log_q).sum(-1) * mask
        return (each.sum(1) / mask.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def note(self, teacher: Logits) -> None:
        """Remember this micro-batch's mean logits until the step is complete."""
        patches = None if teacher.patches is None else teacher.patches.float().mean((0, 1))
        self.seen.append((teacher.cls.float().mean(0), patches))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the centres, once for each optimizer step, towards the whole batch's means."""
        keep = self.config.centre_momentum
        cls = all_reduce_mean(torch.stack([c for c, _ in self.seen]).mean(0))
        self.centre.mul_(keep).add_(cls, alpha=1 - keep)
        patches = [p for _, p in self.seen if p is not None]
        if patches:
            mean = all_reduce_mean(torch.stack(patches).mean(0))
            self.patch_centre.mul_(keep).add_(mean, alpha=1 - keep)
        self.seen.clear()
