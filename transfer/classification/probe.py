"""Linear heads over a frozen backbone: their training configuration, and how they are scored."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.features.bank import PARTS, FeatureBank, require_parts
from mimbench.features.extract import forward_in_pieces
from mimbench.features.storage import describe
from mimbench.model import Weights
from mimbench.networks.kinds import build_network
from mimbench.scores.metrics import rank_classes, top_percent
from mimbench.system.memory import Halving
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.loop import Learner, StepInfo
from mimbench.training.optim import Schedule
from transfer.classification.heads import Config, Heads, make_optimizer


@dataclass(frozen=True, kw_only=True)
class ScoredFeatures:
    """Images that heads are scored on, and their features, computed once."""

    bank: FeatureBank
    vectors: dict[str, Tensor]

    @property
    def labels(self) -> Tensor:
        """Return (n,) int64."""
        return torch.from_numpy(self.bank.images.labels)


class ProbeLearner(Learner):
    """Heads over a frozen backbone."""

    sometimes = frozenset({"top1"})

    def __init__(
        self,
        weights: Weights,
        config: Config,
        val: ScoredFeatures,
        chooser: ScoredFeatures,
        ranks: Ranks,
    ) -> None:
        self.config, self.val, self.chooser = config, val, chooser
        device = pick_device(config.machine.device, ranks.local)
        self.backbone = build_network(weights).to(device)
        for choice in config.choices:
            require_parts(val.vectors, choice)
        widths = {c: sum(val.vectors[p].shape[1] for p in PARTS[c]) for c in config.choices}
        self.classes = len(val.bank.images.classes)
        self.heads = Heads(config, widths, self.classes, config.seed).to(device)
        self.model = self.heads
        self.optimizer = make_optimizer(self.heads, config)
        self.schedule = Schedule(peak=1.0, epochs=config.epochs, warmup=config.warmup)
        self.room = Halving(size=config.machine.max_batch)
        self.history: dict[str, list[float]] = {}

    def loss(self, model: nn.Module, batch: Any, at: StepInfo) -> dict[str, Tensor]:
        """Return the sum of all heads' losses: their gradients do not meet."""
        del at
        pixels, labels = batch.data
        config = self.config
        vectors = forward_in_pieces(
            self.backbone, pixels, config.blocks, config.precision, self.room
        )
        logits = model(vectors).float()
        heads = len(logits)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(heads), reduction="none")
        return {"loss": losses.view(heads, -1).mean(dim=1).sum()}

    def rate(self, at: StepInfo) -> float:
        """Return the common factor of all heads' learning rates."""
        return self.schedule(at.epoch if self.config.anneal == "epoch" else at.fraction)

    def after_update(self, at: StepInfo) -> None:
        """Move the running statistics."""
        del at
        self.heads.end_step()

    def unscored(self, at: StepInfo) -> bool:
        """Tell whether val is due for the epoch that ended, and not scored yet."""
        due = at.epoch % self.config.eval_every == 0 or at.step >= at.steps
        return due and str(at.epoch) not in self.history

    def end_epoch(self, at: StepInfo) -> dict[str, float]:
        """Score every head on val when it is due; an epoch that was not scored has no figure."""
        if not self.unscored(at):
            return {}
        epoch = str(at.epoch)
        self.history[epoch] = self.tops(self.val)
        return {"top1": max(self.history[epoch])}

    def tops(self, scored: ScoredFeatures) -> list[float]:
        """Return every head's top-1."""
        return [top_percent(r, scored.labels, 1) for r in self.ranked(scored)]

    @torch.no_grad()
    def ranked(self, scored: ScoredFeatures) -> Tensor:
        """Return every head's five best classes of each image (heads, n, 5)."""
        training = self.heads.training
        self.heads.eval()
        device = self.heads.weights[0].device
        parts = []
        for start in range(0, len(scored.labels), 4096):
            vectors = {k: v[start : start + 4096].to(device) for k, v in scored.vectors.items()}
            logits = self.heads(vectors)
            parts.append(torch.stack([rank_classes(one).cpu() for one in logits]))
        self.heads.train(training)
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def storage_effect(self, head: int) -> dict[str, Any]:
        """Return what storing val features in half precision does to one head's top-1."""
        self.heads.eval()
        bank, choice = self.val.bank, self.config.heads[head][0]
        rows, exact = bank.exact(choice)
        device, truth = self.heads.weights[0].device, self.val.labels[rows]
        tops = [
            top_percent(rank_classes(self.heads.only(head, x.to(device))).cpu(), truth, 1)
            for x in (exact, bank.load(choice)[rows])
        ]
        return describe(bank.spec.storage, *tops) | {"images": len(rows)}

    def state(self) -> dict[str, Any]:
        """Return the scores of all epochs so far."""
        return {"history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the scores."""
        self.history = state["history"]
