"""Linear probes trained on augmented images over a frozen backbone: in-lin-mae, -dino, -dinov2, -hpm.

He et al. 2022 (MAE): class token after the final norm, batch norm without affine, LARS at
0.1 x batch / 256, batch 16384, 90 epochs, BYOL-style bicubic crop; the last epoch is reported.
Caron et al. 2021 (DINO): no batch norm, SGD, batch 1024, 100 epochs, bilinear crop, learning rate
swept; S: class tokens of the last four blocks, B and L: class token + mean of patches; published is
the best epoch on val. Oquab et al. 2023 (DINOv2): SGD, 13 learning rates x 4 feature choices trained
at once; published is the best of that grid on val.

A grid of heads shares each forward pass of the backbone. The head and epoch that are best on val are
chosen on the very images that are scored, unless `holdout` sets training images aside for that; the
last epoch always stands beside.
Batch norm takes its statistics over `norm_batch` images, the reference's share of one GPU, whatever
the machine.

    python -m transfer.classification.linear checkpoint.pth --benchmark in-lin-mae --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.linear"))

import logging
from pathlib import Path

from mimbench.data.lists import ImageList
from mimbench.data.subsets import hold_out
from mimbench.features.bank import PARTS
from mimbench.model import Weights
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import top_percent
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.training.identity import run_digest
from mimbench.training.loop import LoopConfig, RunContext, fit
from mimbench.training.optim import plan_batch
from mimbench.vit.footprint import frozen
from transfer.classification.heads import Config, head_name
from transfer.classification.probe import ProbeLearner, ScoredFeatures
from transfer.classification.training import TrainImages

logger = logging.getLogger(__name__)

VERSION = 3
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=frozen,
    canonical=lambda config: config.canonical(),
    resolved=lambda spec, config: {"choices": config.for_width(spec.embed_dim).choices},
    nearby=lambda spec, config, notes: config.for_width(spec.embed_dim).nearby(notes),
)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 and top-5 of the reported epoch, and of every head."""
    train, val = config.images()
    config = config.for_width(weights.spec.embed_dim)
    with process_group(config.machine.device) as ranks:
        return train_probe(weights, train, val, config, out, ranks)


def train_probe(
    weights: Weights,
    train: ImageList,
    val: ImageList,
    config: Config,
    out: Path,
    ranks: Ranks,
) -> TaskResult:
    """Train all heads on one list, score them on the other."""
    check_groups(config, ranks.world)
    digest = run_digest(
        weights, config, version=VERSION, data=[train.digest, val.digest], free=TRAITS.free_fields
    )
    needed = sorted({part for choice in config.choices for part in PARTS[choice]})

    def scored(images: ImageList) -> ScoredFeatures:
        bank = config.features(weights, images, ranks)
        return ScoredFeatures(bank=bank, vectors=bank.vectors(needed))

    on_val = scored(val)
    chooser = on_val
    if config.holdout:
        kept, held = hold_out(train.labels, config.holdout, seed=config.seed)
        chooser, train = scored(train.subset(held)), train.subset(kept)
    probe = ProbeLearner(weights, config, on_val, chooser, ranks)
    context = RunContext(
        out=out,
        digest=digest,
        ranks=ranks,
        machine=Machine(
            device=config.machine.device,
            workers=config.machine.workers,
            max_batch=config.norm_batch if config.batch_norm else config.machine.max_batch,
        ),
        label="linear probe",
    )
    loop = LoopConfig(
        epochs=config.epochs,
        batch=config.batch,
        seed=config.seed,
        best="top1",
        best_is="largest",
        log_every=20,
        tensorboard=False,
    )
    fit(probe, TrainImages(train, config.crop.transform(config.image_size)), loop, context)
    return _report(probe, config)


def check_groups(config: Config, world: int) -> None:
    """Raise unless batch norm sees as many images at a time on these processes as on one."""
    if not config.batch_norm:
        return
    alone, mine = (
        plan_batch(config.batch, world=w, at_most=config.norm_batch).per_process for w in (1, world)
    )
    if alone != mine:
        raise UserError(
            f"batch norm takes its statistics over {alone} images, but {world} processes see {mine} "
            f"at a time; use a number of processes that divides {config.batch // alone}"
        )


def _report(probe: ProbeLearner, config: Config) -> TaskResult:
    names = [head_name(*head) for head in config.heads]
    history = probe.history
    last = history[max(history, key=int)]
    chosen_by = probe.tops(probe.chooser) if config.holdout else last
    head = max(range(len(names)), key=lambda i: chosen_by[i])
    best_epoch = max(history, key=lambda e: max(history[e]))
    best = max(history[best_epoch])
    ranked = probe.ranked(probe.val)
    metrics = {
        "top1": last[head] if config.report == "last" else best,
        "top1_last": last[head],
        "top1_best": best,
        "top5_last": top_percent(ranked[head], probe.val.labels, 5),
    }
    if config.report == "last":
        metrics["top5"] = metrics["top5_last"]
    if len(names) > 1:
        metrics |= {f"{name}_top1_last": value for name, value in zip(names, last, strict=True)}
    notes = {
        "head": names[head],
        "best_head": names[max(range(len(names)), key=lambda i: history[best_epoch][i])],
        "best_epoch": int(best_epoch),
        "selection": selection(config, len(probe.chooser.labels)),
        "backbone_images_at_once": probe.room.size,
        "memory_halved": probe.room.halved,
    }
    if config.storage != "fp32":
        notes["storage_effect"] = probe.storage_effect(head)
    outcomes = [Hits.of(probe.val.bank.images, ranked[head].numpy())]
    return TaskResult(metrics=metrics, outcomes=outcomes, notes=notes)


def selection(config: Config, images: int) -> str:
    """Return how the reported head was chosen."""
    if config.holdout:
        return f"head chosen on {images} training images that were held out; top1_best is on val"
    if config.report == "last":
        return "the last epoch's best head is chosen on val; top1_best chooses the epoch as well"
    return "best head and epoch are chosen on val; outcomes are the last epoch's"
