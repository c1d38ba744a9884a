"""What a model's reconstruction really costs: patch by patch, under given masks and under random ones."""

import torch
from torch import Tensor

from pretrain import masks
from pretrain.masks import MaskInput
from pretrain.models.autoencoder import MaskedAutoencoder, split, take
from pretrain.models.reconstruction import normalise_patches, pixel_loss


@torch.no_grad()
def losses_under(
    model: MaskedAutoencoder, patches: Tensor, mask: Tensor, *, normalised: bool
) -> tuple[Tensor, Tensor]:
    """Return the hidden patches (b, m) of a mask (b, n) and the loss of each (b, m).

    Args:
        model: What reconstructs pixels.
        patches: All patches (b, n, size * size * 3).
        mask: True = hidden, as many in each row.
        normalised: Whether targets are pixels normalised within each patch.
    """
    visible, hidden = split(mask, int(mask[0].sum()))
    wanted = take(patches, hidden)
    wanted = normalise_patches(wanted) if normalised else wanted
    return hidden, pixel_loss(model(patches, visible, hidden).prediction, wanted)


def true_losses(
    model: MaskedAutoencoder, patches: Tensor, *, normalised: bool, looks: int
) -> Tensor:
    """Return each patch's loss (b, n), averaged over so many random masks that hide it."""
    rng, strategy = torch.Generator().manual_seed(0), masks.build({"name": "random"})
    inp = MaskInput(batch=len(patches), grid=model.spec.grid, device=patches.device)
    total = torch.zeros(patches.shape[:2])
    count = torch.zeros(patches.shape[:2])
    for _ in range(looks):
        hidden, loss = losses_under(model, patches, strategy(inp, rng), normalised=normalised)
        total.scatter_add_(1, hidden, loss)
        count.scatter_add_(1, hidden, torch.ones_like(loss))
    return total / count.clamp(min=1)
