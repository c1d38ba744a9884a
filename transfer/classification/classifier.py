"""The network that fine-tuning trains: the encoder at the task's resolution, pooling, a new head."""

import torch
from torch import nn

from mimbench.model import Weights
from mimbench.networks import classifier
from mimbench.networks.classifier import at_size
from mimbench.vit.classifier import Pool

__all__ = ["Pool", "at_size", "build_classifier", "init_head"]

HEAD_STD = 2e-5


def build_classifier(
    weights: Weights, classes: int, *, pool: Pool, drop_path: float, seed: int
) -> tuple[nn.Module, list[str]]:
    """Return the classifier and the names of the checkpoint's tensors that it does not take."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return classifier.build_classifier(
            weights, classes, pool=pool, drop_path=drop_path, init_head=init_head
        )


def init_head(head: nn.Module) -> None:
    """Start the head near zero: every class equally likely."""
    if not isinstance(head, nn.Linear):
        raise TypeError(f"the head is a {type(head).__name__}, expected a linear layer")
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
