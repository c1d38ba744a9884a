"""What is predicted and how a prediction is judged: targets, reconstruction, predicted loss."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TargetName = Literal["pixels", "normalised", "low", "low_normalised", "hog", "ema", "dino", "clip"]
PIXEL_TARGETS = frozenset({"pixels", "normalised"})
LossPrediction = Literal["relative", "absolute", "none"]
Weights = Literal["none", "attention", "difficulty"]

EPSILON = 1e-6
"""Added to a variance before its root, for targets and for the absolute loss's standardisation."""


def normalise_patches(patches: Tensor) -> Tensor:
    """Return patches (..., pixels) with mean 0 and (unbiased) variance 1 each."""
    centred = patches - patches.mean(dim=-1, keepdim=True)
    return centred / (patches.var(dim=-1, keepdim=True) + EPSILON).sqrt()


def pixel_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each patch (b, m), in float32."""
    return (prediction.float() - target.float()).square().mean(dim=-1)


def feature_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 2 - 2 cos of each patch (b, m), in float32: between 0 and 4, blind to scale."""
    one = F.normalize(prediction.float(), dim=-1)
    other = F.normalize(target.float(), dim=-1)
    return (one - other).square().sum(dim=-1)


def pair_signs(losses: Tensor) -> Tensor:
    """Return (b, m, m): +1 where patch i lost more than patch j, -1 where less, 0 for a tie."""
    one, other = losses.detach().unsqueeze(2), losses.detach().unsqueeze(1)
    return (one > other).float() - (one < other).float()


def relative_loss(predicted: Tensor, signs: Tensor, *, epsilon: float = 0.0) -> Tensor:
    """Return how badly predicted losses (b, m) order the patches: mean over pairs that differ.

    It is the binary cross-entropy of "which of the two loses more", in float32, as a log-sigmoid;
    ties do not count, and without any pair the loss is 0.

    Args:
        predicted: Predicted losses of the hidden patches.
        signs: What `pair_signs` says about the true ones.
        epsilon: Added inside the logarithm, as the released code does (1e-6): it bounds a pair's
            loss and takes away the gradient of the worst pairs.
    """
    predicted = predicted.float()
    margin = signs * (predicted.unsqueeze(2) - predicted.unsqueeze(1))
    loss = -(margin.sigmoid() + epsilon).log() if epsilon else F.softplus(-margin)
    pairs = signs.abs()
    return (loss * pairs).sum() / pairs.sum().clamp(min=1)


def absolute_loss(predicted: Tensor, losses: Tensor) -> Tensor:
    """Return the mean squared error of predicted losses (b, m) to each image's standardised ones."""
    return (predicted.float() - normalise_patches(losses.detach().float())).square().mean()


@torch.no_grad()
def rank_correlation(predicted: Tensor, signs: Tensor) -> Tensor:
    """Return Kendall's tau between predicted and true losses over the pairs that differ."""
    predicted = predicted.detach().float()
    one, other = predicted.unsqueeze(2), predicted.unsqueeze(1)
    agreement = signs * ((one > other).float() - (one < other).float())
    return agreement.sum() / signs.abs().sum().clamp(min=1)


def patch_weights(values: Tensor, temperature: float) -> Tensor:
    """Return weights (b, m) with mean 1 in each row: exp(values, scaled to [0, 1], / temperature).

    The mean keeps the meaning of the learning rate; a large temperature leaves all patches alike.
    """
    values = values.detach().float()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    scaled = (values - low) / (high - low).clamp(min=1e-12)
    return (scaled / temperature).softmax(dim=1) * values.shape[1]


def spread_choice(keys: Tensor, offset: Tensor, count: int) -> Tensor:
    """Return `count` of m places (b, count), ascending, spread evenly over the order of keys (b, m).

    Every place is as likely as any other, so a mean over the chosen ones estimates the mean over
    all without weights; easy and hard places are both among them.

    Args:
        keys: What orders the places; random numbers make a random choice.
        offset: One number from [0, 1) for each row (b, 1).
        count: How many to choose.
    """
    m = keys.shape[1]
    steps = torch.arange(count, device=keys.device) + offset
    ranks = (steps * (m / count)).long().clamp(max=m - 1)
    return keys.argsort(dim=1, stable=True).gather(1, ranks).sort(dim=1).values
