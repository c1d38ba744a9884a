"""Attentive heads over a frozen backbone: what the training loop is given, and how they are scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from mimbench.features.extract import compute_in_pieces
from mimbench.features.patches import FinalNorm, PatchBank
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.memory import Halving
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device
from mimbench.training.loop import Learner, StepInfo
from mimbench.training.optim import Lars, Schedule, scaled_lr
from mimbench.vit.backbone import build_backbone
from mimbench.vit.weights import VitWeights
from transfer.classification.attentive_config import Config
from transfer.classification.pooling import AttentiveHead, build_head
from transfer.classification.tokens import TokenRule, join_tokens

Part = Literal["held", "val"]
SCORED_BYTES = 32 * 2**20
"""Tokens of so many bytes are scored at a time."""


@dataclass(frozen=True, kw_only=True)
class ScoredTokens:
    """Images that heads are scored on, and their tokens, computed once."""

    bank: PatchBank
    labels: NDArray[np.int64]


class Choice(NamedTuple):
    """An epoch and a head."""

    epoch: str
    head: int


class AttentiveProbe(Learner):
    """Attentive heads of one kind, each with its own learning rate and weight decay."""

    def __init__(
        self,
        weights: VitWeights,
        config: Config,
        rule: TokenRule,
        scored: Mapping[Part, ScoredTokens],
        ranks: Ranks,
        *,
        classes: int,
    ) -> None:
        self.config, self.rule, self.scored, self.ranks = config, rule, scored, ranks
        self.device = pick_device(config.machine.device, ranks.local)
        self.backbone = build_backbone(weights).to(self.device)
        self.norm = FinalNorm(weights, self.device)
        self.heads = nn.ModuleList(
            make_heads(config, weights.spec.embed_dim, weights.spec.num_heads, classes)
        ).to(self.device)
        self.model = Together(self.heads)
        self.optimizer = make_optimizer(self.heads, config)
        self.room = Halving(size=config.machine.max_batch)
        self.history: dict[str, dict[str, list[float]]] = {}
        self.best_ranked = torch.zeros(len(scored["val"].labels), 5, dtype=torch.int64)

    @property
    def head_precision(self) -> Precision:
        """Of the heads' own products: as the backbone's."""
        return self.config.precision

    def labels(self, part: Part) -> Tensor:
        """Return the labels of a part (n,)."""
        return torch.from_numpy(self.scored[part].labels)

    def loss(self, model: nn.Module, batch: Any, at: StepInfo) -> dict[str, Tensor]:
        """Return the sum of all heads' losses: their gradients do not meet."""
        del at
        tokens, labels = self._tokens(batch.data)
        losses = [F.cross_entropy(logits.float(), labels) for logits in model(tokens)]
        return {"loss": torch.stack(losses).sum()}

    def _tokens(self, data: Any) -> tuple[Tensor, Tensor]:
        if self.config.crop is None:
            patches, cls, labels = data
            return join_tokens(patches, cls, self.rule, self.norm), labels
        pixels, labels = data

        def compute(images: Tensor, done: int) -> dict[str, Tensor]:
            del done
            last = self.backbone.spec.depth - 1
            found = self.backbone.blocks(images, [last], norm=False)[0]
            return {"patches": found.patches.flatten(1, 2), "cls": found.cls}

        found = compute_in_pieces(self.backbone, pixels, compute, self.config.precision, self.room)
        return join_tokens(found["patches"], found["cls"], self.rule, self.norm), labels

    def rate(self, at: StepInfo) -> float:
        """Return the common factor of all heads' learning rates."""
        config = self.config
        if config.iterations is None:
            return Schedule(peak=1.0, epochs=config.epochs, warmup=config.warmup)(at.fraction)
        return Schedule(peak=1.0, epochs=config.iterations, warmup=config.warmup)(at.step)

    def after_update(self, at: StepInfo) -> None:
        """Move the running statistics."""
        del at
        for head in self.heads:
            assert isinstance(head, AttentiveHead)
            head.end_step()

    def unscored(self, at: StepInfo) -> bool:
        """Tell whether the epoch that ended is not scored yet."""
        return str(at.epoch) not in self.history

    def end_epoch(self, at: StepInfo) -> dict[str, float]:
        """Score every head; keep the predictions of the best one so far, by held-out images."""
        epoch = str(at.epoch)
        if epoch not in self.history:
            ranked: dict[Part, list[Tensor]] = {part: self.ranked(part) for part in self.scored}
            self.history[epoch] = {
                part: [top_percent(r, self.labels(part), 1) for r in found]
                for part, found in ranked.items()
            }
            chosen = self.choice("held")
            if chosen.epoch == epoch:
                self.best_ranked = ranked["val"][chosen.head]
        tops = self.history[epoch]
        return {"held_out_top1": max(tops["held"]), "val_top1": max(tops["val"])}

    def choice(self, part: Part) -> Choice:
        """Return the epoch and head that are best on a part."""
        return pick(self.history, part)

    @torch.no_grad()
    def ranked(self, part: Part) -> list[Tensor]:
        """Return every head's five best classes of each image (n, 5), on each process all of them."""
        bank = self.scored[part].bank
        out = [torch.zeros(len(bank.images), 5, dtype=torch.int64) for _ in self.heads]
        training = self.heads.training
        self.heads.eval()
        size = max(1, SCORED_BYTES // (4 * bank.spec.per_image * bank.width))
        for shard in range(self.ranks.rank, bank.shards, self.ranks.world):
            patches, cls = (bank.shard(shard, part=p) for p in ("patches", "cls"))
            first = bank.rows(shard).start
            for start in range(0, len(patches), size):
                at = slice(start, start + size)
                logits = self._logits(patches[at], cls[at])
                for ranked, one in zip(out, logits, strict=True):
                    ranked[first + start : first + start + len(one)] = rank_classes(one).cpu()
        self.heads.train(training)
        return [self._everywhere(ranked) for ranked in out]

    def _logits(self, patches: Tensor, cls: Tensor) -> list[Tensor]:
        tokens = join_tokens(patches, cls, self.rule, self.norm)
        with autocast(self.device, self.head_precision):
            return [head(tokens).float() for head in self.heads]

    def _everywhere(self, ranked: Tensor) -> Tensor:
        if self.ranks.world == 1:
            return ranked
        shared = ranked.to(self.device)
        dist.all_reduce(shared)
        return shared.cpu()

    @torch.no_grad()
    def storage_effect(self) -> dict[str, Any]:
        """Return what half precision does to the logits of the images whose exact tokens are kept."""
        bank = self.scored["val"].bank
        rows, exact = bank.exact()
        stored = bank.image_rows(rows)
        cls = bank.image_rows(rows, part="cls")
        self.heads.eval()
        one, other = (self._logits(x, cls)[0] for x in (exact, stored))
        changed = int((one.argmax(dim=1) != other.argmax(dim=1)).sum())
        gap = float((one - other).abs().max())
        assert math.isfinite(gap)
        return {"images": len(rows), "predictions_changed": changed, "largest_logit_change": gap}

    def state(self) -> dict[str, Any]:
        """Return the scores of all epochs so far, and the predictions of the best."""
        return {"history": self.history, "best_ranked": self.best_ranked}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the scores."""
        self.history, self.best_ranked = state["history"], state["best_ranked"]


def pick(history: Mapping[str, Mapping[str, list[float]]], part: Part) -> Choice:
    """Return the epoch and head that are best on a part; of equal ones the first."""
    best = max(
        (
            (top, -int(epoch), -head)
            for epoch, tops in history.items()
            for head, top in enumerate(tops[part])
        )
    )
    return Choice(str(-best[1]), -best[2])


class Together(nn.Module):
    """All heads on the same tokens."""

    def __init__(self, heads: nn.ModuleList) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Return each head's logits (b, classes)."""
        return [head(tokens) for head in self.heads]


def make_heads(config: Config, width: int, heads: int, classes: int) -> list[AttentiveHead]:
    """Return one head for each learning rate and weight decay, all with the same start."""
    found = []
    for _ in config.heads:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            found.append(
                build_head(
                    config.probe, width=width, heads=heads, classes=classes, queries=config.queries
                )
            )
    return found


def make_optimizer(heads: nn.ModuleList, config: Config) -> Optimizer:
    """Return LARS or AdamW with groups for each head; biases and norms do not decay."""
    groups: list[dict[str, Any]] = []
    for head, (lr, decay) in zip(heads, config.heads, strict=True):
        scale = {"lr_scale": scaled_lr(lr, config.batch)}
        named = dict(head.named_parameters())
        free = [p for name, p in named.items() if name.endswith("bias") or ".norm" in name]
        bound = [p for p in named.values() if not any(p is f for f in free)]
        groups += [{"params": bound, "weight_decay": decay, **scale}]
        groups += [{"params": free, "weight_decay": 0.0, **scale}] if free else []
    if config.optimiser == "lars":
        return Lars(groups, lr=1.0)  # pyright: ignore[reportArgumentType]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
