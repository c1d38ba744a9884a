"""How well predicted difficulties order patches: against true losses under random masks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.models.autoencoder import MaskedAutoencoder, to_patches
from pretrain.models.teacher import CrossTeacher, Teacher, build_teacher
from pretrain.viewing.mask_statistics import spearman
from pretrain.viewing.true_losses import true_losses

LOOKS = 24
"""Random masks over which a patch's true loss is averaged."""


@torch.no_grad()
def judgements(teacher: Teacher, patches: Tensor) -> dict[str, Tensor]:
    """Return each way of ordering patches: scores (b, n), larger is said to be harder."""
    keys = torch.rand(patches.shape[:2], generator=torch.Generator().manual_seed(1))
    found = {"contrast": patches.std(dim=-1)}
    if teacher.predictor is not None:
        whole = teacher(patches, difficulty=True).difficulty
        assert whole is not None
        found |= {"whole": whole, "quarter": teacher.sample(patches, keys)}
        if not isinstance(teacher, CrossTeacher):
            found["tokens 0.25"] = teacher.glance(patches, 0.25)
    return found


def share_found(scores: Tensor, losses: Tensor, count: int) -> float:
    """Return the share of the `count` truly hardest patches that are among the highest scores."""
    chosen, hardest = (
        torch.zeros_like(losses).scatter_(1, v.topk(count).indices, 1.0) for v in (scores, losses)
    )
    return ((chosen * hardest).sum(1) / count).mean().item()


@torch.no_grad()
def bank_quality(
    model: MaskedAutoencoder,
    teacher: Teacher | None,
    maps: Tensor,
    images: Tensor,
    *,
    normalised: bool,
) -> dict[str, dict[str, float]]:
    """Return what `mask_quality` does for images that a bank remembers, and beside it for the bank.

    Args:
        model: The student.
        teacher: What predicts losses, as far as the run kept one.
        maps: The images' rows of the bank (b, n).
        images: (b, 3, H, W), normalised and whole.
        normalised: Whether targets are normalised pixels.
    """
    known = (maps > 0).float()
    ranks = maps.float()
    # what was never hidden is as hard as the rest of its image on average
    mean = (ranks * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    further = {"bank": torch.where(known > 0, ranks, mean)}
    return mask_quality(model, teacher, images, normalised=normalised, further=further)


def mask_quality(
    model: MaskedAutoencoder,
    teacher: Teacher | None,
    images: Tensor,
    *,
    normalised: bool,
    further: Mapping[str, Tensor] | None = None,
) -> dict[str, dict[str, float]]:
    """Return, for each way of ordering, Spearman's correlation and the share of the hardest found.

    Args:
        model: The student: its losses are the truth.
        teacher: What predicts them; without one pixel contrast alone is judged.
        images: (b, 3, H, W), normalised.
        normalised: Whether targets are normalised pixels.
        further: Other ways of ordering, scores (b, n) by name.
    """
    patches = to_patches(images, model.spec.patch_size)
    losses = true_losses(model, patches, normalised=normalised, looks=LOOKS)
    count = round(losses.shape[1] * 0.375)
    scores = judgements(teacher or build_teacher(model), patches) | dict(further or {})
    return {
        "reconstruction": {"loss": losses.mean().item()},
        **{
            name: {"rank": spearman(s, losses), "found": share_found(s, losses, count)}
            for name, s in scores.items()
        },
    }
