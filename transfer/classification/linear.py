"""Linear probes trained on augmented images over a frozen backbone: in-lin-mae, -dino, -dinov2, -hpm.

He et al. 2022 (MAE): class token after the final norm, batch norm without affine, LARS at
0.1 x batch / 256, batch 16384, 90 epochs, BYOL-style bicubic crop; the last epoch is reported.
Caron et al. 2021 (DINO): no batch norm, SGD, batch 1024, 100 epochs, bilinear crop, learning rate
swept; S: class tokens of the last four blocks, B and L: class token + mean of patches; published is
the best epoch on val. Oquab et al. 2023 (DINOv2): SGD, 13 learning rates x 4 feature choices trained
at once; published is the best of that grid on val.

A grid of heads shares each forward pass of the backbone. The head and epoch that are best on val are
chosen on the very images that are scored: the last epoch always stands beside.
Batch norm takes its statistics over `norm_batch` images, the reference's share of one GPU, whatever
the machine.

    python -m transfer.classification.linear checkpoint.pth --benchmark in-lin-mae --data imagenet
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from mimbench.backbone import build_backbone
from mimbench.data import ImageList
from mimbench.extract import forward_in_pieces
from mimbench.features import PARTS, Choice, join
from mimbench.files import write_json
from mimbench.loop import Learner, LoopConfig, Moment, Place, fit
from mimbench.memory import Halving
from mimbench.metrics import rank_classes, top_percent, write_outcomes
from mimbench.optim import Lars, Schedule, scaled_lr
from mimbench.protocol import FrozenConfig, run_digest
from mimbench.runtime import Ranks, pick_device, process_group
from mimbench.task import Machine
from mimbench.weights import VitWeights
from transfer.classification.training import Crop, TrainImages

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"


@dataclass(frozen=True, kw_only=True)
class Config(FrozenConfig):
    """Everything that may move the number, beside how features are made."""

    choices: tuple[Choice, ...] = ("cls",)
    learning_rates: tuple[float, ...] = (0.1,)
    """Base rates, for 256 images; each with each feature choice is one head."""
    batch_norm: bool = True
    norm_batch: int = 512
    """Images that batch norm takes its statistics over."""
    optimiser: Literal["lars", "sgd"] = "lars"
    batch: int = 16384
    epochs: int = 90
    warmup: float = 10
    crop: Crop = field(default_factory=lambda: Crop(kind="byol"))
    report: Literal["last", "best"] = "last"
    """Which epoch `top1` is of; of several heads it is the best one on val."""
    eval_every: int = 1
    """Epochs between two looks at val."""

    def __post_init__(self) -> None:
        if not self.choices or not self.learning_rates:
            raise ValueError("choices and learning_rates each need at least one value")
        super().__post_init__()

    @property
    def heads(self) -> list[tuple[Choice, float]]:
        """Every head's features and base learning rate."""
        return [(choice, lr) for choice in self.choices for lr in self.learning_rates]

    @property
    def blocks(self) -> int:
        """How many last blocks the heads read."""
        return max(int(part[-1]) for choice in self.choices for part in PARTS[choice])


def head_name(choice: str, lr: float) -> str:
    """Return what a head is called in the metrics."""
    return f"{choice}_lr{lr:g}"


class Heads(nn.Module):
    """Linear classifiers of every feature choice and learning rate, in one product for each choice."""

    def __init__(self, config: Config, widths: dict[str, int], classes: int, seed: int) -> None:
        super().__init__()
        self.choices, self.rates, self.classes = config.choices, config.learning_rates, classes
        self.norms = nn.ModuleList()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for choice in config.choices:
            # the same start whatever other choices are trained beside it
            generator = torch.Generator().manual_seed(seed)
            norm = nn.BatchNorm1d(widths[choice], affine=False, eps=1e-6)
            self.norms.append(norm if config.batch_norm else nn.Identity())
            first = torch.empty(classes, widths[choice]).normal_(0, 0.01, generator=generator)
            for _ in config.learning_rates:
                # heads of one choice differ in nothing but their learning rate
                self.weights.append(nn.Parameter(first.clone()))
                self.biases.append(nn.Parameter(torch.zeros(classes)))

    def forward(self, vectors: dict[str, Tensor]) -> Tensor:
        """Return logits (heads, b, classes)."""
        out = []
        count = len(self.rates)
        for i, choice in enumerate(self.choices):
            x = self.norms[i](join(vectors, choice))
            at = slice(i * count, (i + 1) * count)
            logits = F.linear(
                x, torch.cat(list(self.weights[at])), torch.cat(list(self.biases[at]))
            )
            out.append(logits.view(len(x), count, self.classes).transpose(0, 1))
        return torch.cat(out)


def make_optimizer(heads: Heads, config: Config) -> Optimizer:
    """Return LARS or SGD with a group for each head."""
    groups: list[dict[str, Any]] = [
        {"params": [w, b], "lr_scale": scaled_lr(lr, config.batch)}
        for w, b, (_, lr) in zip(heads.weights, heads.biases, config.heads, strict=True)
    ]
    if config.optimiser == "lars":
        return Lars(groups, lr=1.0)  # pyright: ignore[reportArgumentType]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=0.0, fused=True)


class Probe(Learner):
    """Heads over a frozen backbone; val is scored on features computed once."""

    def __init__(
        self,
        weights: VitWeights,
        config: Config,
        val: dict[str, Tensor],
        images: ImageList,
        at: Place,
    ) -> None:
        self.config, self.val, self.labels = config, val, torch.from_numpy(images.labels)
        device = pick_device(config.machine.device, at.ranks.local)
        self.backbone = build_backbone(weights).to(device)
        widths = {c: sum(val[p].shape[1] for p in PARTS[c]) for c in config.choices}
        self.classes = len(images.classes)
        self.heads = Heads(config, widths, self.classes, config.seed).to(device)
        self.model = self.heads
        self.optimizer = make_optimizer(self.heads, config)
        self.schedule = Schedule(peak=1.0, epochs=config.epochs, warmup=config.warmup)
        self.room = Halving(size=config.machine.max_batch)
        self.history: dict[str, list[float]] = {}

    def loss(self, model: nn.Module, batch: Any, at: Moment) -> dict[str, Tensor]:
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

    def rate(self, at: Moment) -> float:
        """Return the common factor of all heads' learning rates."""
        return self.schedule(at.fraction)

    def end_epoch(self, at: Moment) -> dict[str, float]:
        """Score every head on val."""
        if at.epoch % self.config.eval_every and at.step < at.steps:
            return {"top1": self.best_so_far()}
        epoch = str(at.epoch)
        ranked = self.ranked()
        self.history[epoch] = [top_percent(r, self.labels, 1) for r in ranked]
        return {"top1": max(self.history[epoch])}

    def best_so_far(self) -> float:
        """Return the best top-1 of any head and epoch."""
        return max((max(tops) for tops in self.history.values()), default=0.0)

    @torch.no_grad()
    def ranked(self) -> Tensor:
        """Return every head's five best classes of each val image (heads, n, 5)."""
        training = self.heads.training
        self.heads.eval()
        device = self.heads.weights[0].device
        parts = []
        for start in range(0, len(self.labels), 4096):
            vectors = {k: v[start : start + 4096].to(device) for k, v in self.val.items()}
            logits = self.heads(vectors)
            parts.append(torch.stack([rank_classes(one).cpu() for one in logits]))
        self.heads.train(training)
        return torch.cat(parts, dim=1)

    def state(self) -> dict[str, Any]:
        """Return the scores of all epochs so far."""
        return {"history": self.history}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the scores."""
        self.history = state["history"]


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Return top-1 and top-5 of the reported epoch, and of every head."""
    train, val = config.images()
    with process_group() as ranks:
        return train_probe(weights, train, val, config, out, ranks)


def train_probe(
    weights: VitWeights,
    train: ImageList,
    val: ImageList,
    config: Config,
    out: Path,
    ranks: Ranks,
) -> dict[str, float]:
    """Train all heads on one list, score them on the other."""
    bank = config.features(weights, val, ranks)
    needed = {part for choice in config.choices for part in PARTS[choice]}
    stored = bank.vectors(sorted(needed))
    digest = run_digest(weights, train, val, config)
    at_once = config.norm_batch if config.batch_norm else config.machine.max_batch
    place = Place(
        out=out,
        digest=digest,
        ranks=ranks,
        machine=Machine(
            device=config.machine.device, workers=config.machine.workers, max_batch=at_once
        ),
        label="linear probe",
    )
    probe = Probe(weights, config, stored, val, place)
    samples = TrainImages(train, config.crop.transform(config.image_size))
    loop = LoopConfig(
        epochs=config.epochs,
        batch=config.batch,
        seed=config.seed,
        best="top1",
        best_is="largest",
        log_every=20,
        tensorboard=False,
    )
    fit(probe, samples, loop, place)
    return _report(probe, val, config, out, ranks)


def _report(
    probe: Probe, val: ImageList, config: Config, out: Path, ranks: Ranks
) -> dict[str, float]:
    names = [head_name(*head) for head in config.heads]
    last = probe.history[max(probe.history, key=int)]
    ranked = probe.ranked()
    head = max(range(len(names)), key=lambda i: last[i])
    best_epoch = max(probe.history, key=lambda e: max(probe.history[e]))
    best = max(probe.history[best_epoch])
    metrics = {
        "top1": last[head] if config.report == "last" else best,
        "top1_last": last[head],
        "top1_best": best,
        "top5_last": top_percent(ranked[head], probe.labels, 5),
    }
    if len(names) > 1:
        metrics |= {f"{name}_top1_last": value for name, value in zip(names, last, strict=True)}
    if ranks.main:
        write_outcomes(out, val, ranked[head].numpy())
        extra = {
            "head": names[head],
            "best_head": names[max(range(len(names)), key=lambda i: probe.history[best_epoch][i])],
            "best_epoch": int(best_epoch),
            "selection": "best head and epoch are chosen on val; outcomes are the last epoch's",
            "backbone_images_at_once": probe.room.size,
            "memory_halved": probe.room.halved,
        }
        write_json(out / "extra.json", extra)
    return metrics


if __name__ == "__main__":
    from mimbench.task_main import task_main

    sys.exit(task_main("transfer.classification.linear"))
