"""Which tokens an attentive probe reads: decided by how the backbone was trained, never by a score.

Efficient probing reads patches, and the class token as well where the pretraining objective is defined
on it. It hands over the last block's output before the final norm for most families, after it for
DINOv2 and DINOv3; that choice alone moves some backbones by many points, so it is part of the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mimbench.features.patches import FinalNorm, PatchBank
from mimbench.vit.weights import VitWeights

Which = Literal["auto", "patches", "patches+class"]
Where = Literal["auto", "before", "after"]

CLASS_OBJECTIVE = frozenset(
    {"dino", "ibot", "mocov3", "dinov2", "hf-dinov2", "dinov3", "hf-dinov3", "clip", "timm"}
)
"""Formats whose objective is defined on the class token; timm's are supervised on it."""
NORMED = frozenset({"dinov2", "hf-dinov2", "dinov3", "hf-dinov3", "clip"})
"""Formats whose published probes read tokens after the final norm."""


@dataclass(frozen=True, kw_only=True)
class TokenRule:
    """What is handed over."""

    class_token: bool
    normed: bool

    @property
    def summary(self) -> str:
        """Say it in words, as results do."""
        what = "patches and class token" if self.class_token else "patches"
        return f"{what} of the last block, {'after' if self.normed else 'before'} the final norm"


def origin(weights: VitWeights) -> str:
    """Return the format that says how the weights were trained; of our own files that they came from."""
    for note in weights.notes:
        if note.startswith("written from "):
            return note.split()[2]
    return weights.format


def token_rule(weights: VitWeights, which: Which = "auto", where: Where = "auto") -> TokenRule:
    """Return the rule for a checkpoint; `auto` decides by its pretraining."""
    family, spec = origin(weights), weights.spec
    by_objective = family in CLASS_OBJECTIVE and spec.class_token and spec.pool == "cls"
    class_token = by_objective if which == "auto" else which == "patches+class"
    normed = family in NORMED if where == "auto" else where == "after"
    return TokenRule(class_token=class_token and spec.class_token, normed=normed)


def join_tokens(patches: Tensor, cls: Tensor, rule: TokenRule, norm: FinalNorm) -> Tensor:
    """Return tokens (b, n, d) on the norm's device, the class token first if it is read.

    Normed ones are float32, others as they come: heads widen them a few at a time.

    Args:
        patches: (b, n, d) before the final norm.
        cls: (b, d) before it.
        rule: What is handed over.
        norm: The backbone's final norm.
    """
    tokens = torch.cat([cls[:, None], patches], dim=1) if rule.class_token else patches
    return norm(tokens) if rule.normed else tokens.to(norm.device)


class CachedTokens:
    """A bank's images as training samples: nothing but tokens is read."""

    def __init__(self, bank: PatchBank, labels: Sequence[int]) -> None:
        self.bank, self.labels = bank, labels
        self.opened: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.bank.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        shard, row = divmod(index, self.bank.shard_images)
        if shard not in self.opened:
            # mapped, not read: memory holds what is touched
            self.opened[shard] = self.bank.shard(shard), self.bank.shard(shard, part="cls")
        patches, cls = self.opened[shard]
        return patches[row], cls[row], int(self.labels[index])

    def name(self, index: int) -> str:
        """Return the image's path."""
        return self.bank.images.names[index]
