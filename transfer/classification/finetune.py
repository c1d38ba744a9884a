"""Full fine-tuning: in-ft-mae, in-ft-hpm, in-ft-beit.

He et al. 2022 (MAE), Wang et al. 2023 (HPM), Bao et al. 2022 (BEiT) as iBOT runs it; `recipes.py`
holds what differs by size. Common: AdamW (0.9, 0.999), weight decay 0.05 but for one-dimensional
tensors, positions and class token, cosine per step to 1e-6, layer-wise learning rate decay, drop
path, RandAugment m9-mstd0.5-inc1, mixup 0.8, cutmix 1.0, random erasing 0.25, label smoothing 0.1.
Expected on ImageNet: MAE-1600 ViT-B 83.6 (four seeds: sd 0.08), HPM-800 ViT-B 84.2; MAE ViT-B takes
about 230 V100-hours. The last epoch is reported; the best one on val stands beside.

    python -m transfer.classification.finetune checkpoint.pth --benchmark in-ft-mae --data imagenet
"""

import sys

if __name__ == "__main__":
    from mimbench.suite.task_main import task_main

    sys.exit(task_main("transfer.classification.finetune"))

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mimbench.data.lists import ImageList
from mimbench.model import Weights
from mimbench.scores.hits import Hits
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.system.memory import Halving, is_out_of_memory
from mimbench.system.runtime import Ranks, process_group
from mimbench.task import TaskResult, Traits
from mimbench.training.identity import run_digest
from mimbench.training.loop import LoopConfig, RunContext, fit
from mimbench.training.optim import plan_batch
from transfer.classification.augmentation import train_transform
from transfer.classification.recipes import FinetuneRecipe
from transfer.classification.training import TrainImages
from transfer.classification.tuner import Config, FineTune

logger = logging.getLogger(__name__)

VERSION = 2
MAIN_METRIC = "top1"
TRAITS = Traits(
    effort=1,
    labelled_images=True,
    canonical=lambda config: config.canonical(),
    resolved=lambda spec, config: {
        k: v
        for k, v in vars(config.resolve(spec.embed_dim, spec.model)).items()
        # added later: where no average is scored, or the configuration says the decay, results of
        # before say the same without it
        if hasattr(config, k)
        and not (k == "ema" and not v)
        and not (k == "weight_decay" and config.weight_decay is not None)
    },
)

WORD = "memory.json"
"""In a run's folder: how many images at once the next start is to try."""


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Return top-1 and top-5 of the reported epoch."""
    train, val = config.images()
    with process_group(config.machine.device) as ranks:
        return train_classifier(weights, train, val, config, out, ranks)


def train_classifier(
    weights: Weights,
    train: ImageList,
    val: ImageList,
    config: Config,
    out: Path,
    ranks: Ranks,
) -> TaskResult:
    """Fine-tune on one list, score the other; out of memory halves the micro-batch and goes on.

    A process alone goes on from its last saved epoch. Several rehearse a step first and agree on a
    size that fits all of them; one that runs out later still leaves word for the next start.
    """
    recipe = config.resolve(weights.spec.embed_dim, weights.spec.model)
    mixes = config.augment.mixes
    first = micro_batch(recipe.batch, ranks.world, config.machine.max_batch, even=mixes)
    room = Halving(size=first)
    digest = run_digest(
        weights, config, version=VERSION, data=[train.digest, val.digest], free=TRAITS.free_fields
    )

    def attempt(size: int, learner: FineTune | None = None) -> FineTune:
        # made anew, so that a failed attempt leaves nothing behind; fit restores what was saved
        learner = learner or FineTune(weights, config, val, ranks)
        most = micro_batch(recipe.batch, ranks.world, size, even=mixes)
        context = RunContext(
            out=out,
            digest=digest,
            ranks=ranks,
            machine=replace(config.machine, max_batch=most),
            label="fine-tune",
        )
        transform = train_transform(
            config.augment, config.image_size, config.interpolation, learner.spec
        )
        samples = TrainImages(train, transform)
        fit(learner, samples, loop_config(config, recipe), context)
        return learner

    if ranks.world == 1:
        learner = room.attempt(attempt)
    else:
        learner = FineTune(weights, config, val, ranks)
        room.size = min(room.size, remembered(out) or room.size)
        room.agree(
            lambda size: learner.rehearse(micro_batch(recipe.batch, ranks.world, size, even=mixes)),
            learner.device,
        )
        with leaving_word(out, room, ranks):
            attempt(room.size, learner)
    return _report(learner, config, ranks, room)


def loop_config(config: Config, recipe: FinetuneRecipe) -> LoopConfig:
    """Return the training loop's configuration."""
    return LoopConfig(
        epochs=recipe.epochs,
        batch=recipe.batch,
        seed=config.seed,
        precision=config.precision,
        clip_grad=config.clip_grad,
        best="top1",
        best_is="largest",
        log_every=20,
        tensorboard=False,
        repeats=config.repeats(recipe),
    )


def remembered(out: Path) -> int | None:
    """Return how many images at once an earlier start found to fit, if one ran out of memory."""
    path = out / WORD
    return int(json.loads(path.read_text(encoding="utf-8"))["images"]) if path.exists() else None


@contextmanager
def leaving_word(out: Path, room: Halving, ranks: Ranks) -> Iterator[None]:
    """Where memory runs out among several processes, note a smaller size and end the run.

    The others wait for this one's gradients, so that only their launcher can end them.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or room.size <= 1:
            raise
        write_json(out / WORD, {"images": room.size // 2})
        raise UserError(
            f"process {ranks.rank} ran out of memory with {room.size} images at a time; finished "
            f"epochs are kept: the same command goes on with {room.size // 2}"
        ) from error


def micro_batch(batch: int, world: int, at_most: int, *, even: bool) -> int:
    """Return the images of one process and micro-step; an even number where images are mixed."""
    for most in range(at_most, 0, -1):
        size = plan_batch(batch, world=world, at_most=most).per_process
        if not even or size % 2 == 0:
            return size
    return plan_batch(batch, world=world, at_most=2).per_process


def _report(learner: FineTune, config: Config, ranks: Ranks, room: Halving) -> TaskResult:
    history = learner.history
    last, best = (
        max(history, key=int),
        max(history, key=lambda epoch: history[epoch][0]),
    )
    chosen = last if config.report == "last" else best
    metrics = {
        "top1": history[chosen][0],
        "top5": history[chosen][1],
        "top1_last": history[last][0],
        "top1_best": history[best][0],
    }
    recipe, world = learner.recipe, ranks.world
    size = micro_batch(recipe.batch, world, room.size, even=config.augment.mixes)
    notes = {
        "recipe": {k: v for k, v in recipe.__dict__.items() if k != "note"},
        "note": recipe.note,
        "unpublished": recipe.note,
        "best_epoch": int(best),
        "outcomes": "of the last epoch",
        "tensors_not_taken": learner.dropped,
        "micro_batch": size,
        "micro_steps": recipe.batch // (size * world),
        "effective_batch": recipe.batch,
        "memory_halved": room.halved,
    }
    outcomes = [Hits.of(learner.val, learner.ranked.numpy())]
    return TaskResult(metrics=metrics, outcomes=outcomes, notes=notes)
