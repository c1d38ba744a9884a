"""Attentive probes on frozen patch tokens: in-attn-ep, in-attn-capi, in-attn-vjepa.

Psomas et al. (efficient probing, ICLR 2026): 32 queries, one value matrix, batch norm, linear; LARS at
0.1 x batch / 256, batch 4096, 90 epochs with 10 of warm-up, BYOL-style crop. Published is the best epoch
on val. Expected: MAE ViT-B/16 75.5 (linear 67.8), ViT-L/16 79.5. Darcet et al. (CAPI): a grid of 30
heads, AdamW, 12 500 iterations, chosen on a held-out tenth of train.

Here the epoch, and the head of several, are always chosen on training images that were held out; the
best epoch on val stands beside as `top1_best_on_val`, as published. With `crop: null` the probe
trains on the tokens of the centre crop, computed once: cheaper, and another protocol.

    python -m transfer.classification.attentive checkpoint.pth --benchmark in-attn-ep --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.attentive"))

import logging
from pathlib import Path
from typing import Any

from mimbench.data.lists import ImageList
from mimbench.data.subsets import hold_out
from mimbench.features.patches import PatchBank, PatchSpec, extract_patches, patch_grid
from mimbench.model import Weights
from mimbench.networks.kinds import plain_vit
from mimbench.scores.hits import Hits
from mimbench.scores.metrics import top_percent
from mimbench.system.runtime import Ranks, process_group
from mimbench.task import Machine, TaskResult, Traits
from mimbench.training.identity import run_digest
from mimbench.training.loop import LoopConfig, RunContext, fit
from mimbench.training.optim import scaled_lr
from mimbench.vit.footprint import stored_patches
from mimbench.vit.weights import VitWeights
from transfer.classification.attentive_config import Config
from transfer.classification.attentive_probe import AttentiveProbe, Part, ScoredTokens
from transfer.classification.tokens import CachedTokens, token_rule
from transfer.classification.training import TrainImages

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"
TRAITS = Traits(
    labelled_images=True,
    footprint=stored_patches,
    beside={"top1_best_on_val": "best epoch on val, the published style"},
)


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Train the heads; return top-1 at the epoch that held-out images choose, and the published style."""
    weights = plain_vit(weights)
    train, val = config.images()
    with process_group(config.machine.device) as ranks:
        return train_heads(weights, train, val, config, out, ranks)


def train_heads(
    weights: VitWeights,
    train: ImageList,
    val: ImageList,
    config: Config,
    out: Path,
    ranks: Ranks,
) -> TaskResult:
    """Train all heads on one part of the training list; the other part chooses."""
    kept, held = hold_out(train.labels, config.holdout, seed=config.seed)
    rule = token_rule(weights, config.tokens, config.norm)
    logger.info("the probe reads %s", rule.summary)

    def bank(images: ImageList) -> PatchBank:
        return token_bank(weights, images, config, ranks)

    scored: dict[Part, ScoredTokens] = {
        "val": ScoredTokens(bank=bank(val), labels=val.labels),
        "held": ScoredTokens(bank=bank(train.subset(held)), labels=train.labels[held]),
    }
    part = train.subset(kept)
    probe = AttentiveProbe(weights, config, rule, scored, ranks, classes=len(train.classes))
    samples: Any = (
        TrainImages(part, config.crop.transform(config.image_size))
        if config.crop is not None
        else CachedTokens(bank(part), part.labels.tolist())
    )
    per_epoch = max(1, len(part) // config.batch)
    epochs = config.epochs if config.iterations is None else -(-config.iterations // per_epoch)
    context = RunContext(
        out=out,
        digest=run_digest(
            weights,
            config,
            version=VERSION,
            data=[train.digest, val.digest],
            free=TRAITS.free_fields,
        ),
        ranks=ranks,
        machine=Machine(
            device=config.machine.device, workers=config.machine.workers, max_batch=config.at_most
        ),
        label=f"attentive probe ({config.probe})",
    )
    loop = LoopConfig(
        epochs=epochs,
        batch=config.batch,
        steps=config.iterations,
        seed=config.seed,
        precision=probe.head_precision,
        best="held_out_top1",
        best_is="largest",
        log_every=20,
        tensorboard=False,
    )
    fit(probe, samples, loop, context)
    return report(probe, val, config)


def token_bank(weights: VitWeights, images: ImageList, config: Config, ranks: Ranks) -> PatchBank:
    """Return the complete bank of centre-crop tokens of an image list."""
    spec = PatchSpec(
        preprocess=config.preprocess(),
        grid=patch_grid(weights, config.image_size),
        storage=config.storage,
        precision=config.precision,
    )
    return extract_patches(weights, images, spec, config.machine, ranks=ranks)


def report(probe: AttentiveProbe, val: ImageList, config: Config) -> TaskResult:
    """Return the numbers of the epoch and head that were chosen, and of the published choice."""
    chosen, published = probe.choice("held"), probe.choice("val")
    last = max(probe.history, key=int)
    final = probe.history[last]
    head_at_end = max(range(len(config.heads)), key=lambda i: final["held"][i])
    metrics = {
        "top1": probe.history[chosen.epoch]["val"][chosen.head],
        "top5": top_percent(probe.best_ranked, probe.labels("val"), 5),
        "top1_last": final["val"][head_at_end],
        "top1_best_on_val": probe.history[published.epoch]["val"][published.head],
        "held_out_top1": probe.history[chosen.epoch]["held"][chosen.head],
    }
    notes = {
        "tokens": probe.rule.summary,
        "trained_parameters": sum(p.numel() for p in probe.heads[0].parameters()),
        "heads": len(config.heads),
        "chosen": f"epoch {chosen.epoch}, {head_name(config, chosen.head)}",
        "best_on_val": f"epoch {published.epoch}, {head_name(config, published.head)}",
        "selection": (
            f"epoch and head chosen on {len(probe.labels('held'))} training images that were held "
            "out; top1_best_on_val is the published style: chosen on the images that are scored"
        ),
        "backbone_images_at_once": probe.room.size,
        "memory_halved": probe.room.halved,
    }
    if config.storage != "fp32":
        notes["storage_effect"] = probe.storage_effect()
    return TaskResult(
        metrics=metrics, outcomes=[Hits.of(val, probe.best_ranked.numpy())], notes=notes
    )


def head_name(config: Config, head: int) -> str:
    """Return what tells a head from the others."""
    lr, wd = config.heads[head]
    return f"learning rate {scaled_lr(lr, config.batch):g}, weight decay {wd:g}"
