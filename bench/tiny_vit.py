"""A ViT of half a million parameters, trained for a minute on one core; and ways to break it."""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

BATCH = 64
IGNORED = -1
"""Target that counts neither in the loss nor in the accuracy."""


def tiny_vit(side: int, patch: int, outputs: int) -> VisionTransformer:
    """Return a ViT of width 96 and depth 4 (0.5 M parameters) with `outputs` outputs."""
    return VisionTransformer(
        img_size=side,
        patch_size=patch,
        embed_dim=96,
        depth=4,
        num_heads=3,
        num_classes=outputs,
        global_pool="avg",
    )


class DenseHead(nn.Module):
    """A ViT whose tokens each predict, with one linear layer, the labels of their own patch."""

    def __init__(self, side: int, patch: int, classes: int, cell: int):
        super().__init__()
        self.grid, self.fine, self.cell = side // patch, patch // cell, cell
        self.vit = tiny_vit(side, patch, 0)
        self.head = nn.Linear(self.vit.embed_dim, classes * self.fine**2)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (b, classes, h, w) at 1 / `cell` of the resolution."""
        tokens = self.head(self.vit.forward_features(images)[:, 1:])
        grid = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return F.pixel_shuffle(grid, self.fine)


def fit(model: nn.Module, images: Tensor, targets: Tensor, *, steps: int, seed: int) -> nn.Module:
    """Train `model` with AdamW, warm-up and cosine decay; return it in evaluation mode."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1
    )
    batch = min(BATCH, max(BATCH * 32 * 32 // images.shape[-1] ** 2 * 4, 8))
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch,), generator=rng)
        loss = F.cross_entropy(model(images[chosen]), targets[chosen], ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the most likely class of each picture, or of each pixel."""
    return torch.cat([model(part).argmax(1) for part in images.split(100)])


def accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Return the share of right answers among the targets that count."""
    right = predict(model, images) == targets
    return right[targets != IGNORED].float().mean().item()


def shuffled(targets: Tensor, seed: int) -> Tensor:
    """Return the targets of other pictures: a reader that mismatches names and labels."""
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]


def kill_patch_embedding(model: VisionTransformer) -> VisionTransformer:
    """Zero the patch embedding for good: a checkpoint that was not loaded where it counts."""
    for parameter in model.patch_embed.parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
    return model
