"""Full fine-tuning: in-ft-mae, in-ft-hpm, in-ft-beit.

He et al. 2022 (MAE), Wang et al. 2023 (HPM), Bao et al. 2022 (BEiT) as iBOT runs it; `recipes.py`
holds what differs by size. Common: AdamW (0.9, 0.999), weight decay 0.05 but for one-dimensional
tensors, positions and class token, cosine per step to 1e-6, layer-wise learning rate decay, drop
path, RandAugment m9-mstd0.5-inc1, mixup 0.8, cutmix 1.0, random erasing 0.25, label smoothing 0.1.
Expected on ImageNet: MAE-1600 ViT-B 83.6 (four seeds: sd 0.08), HPM-800 ViT-B 84.2; MAE ViT-B takes
about 230 V100-hours. The last epoch is reported; the best one on val stands beside.

    python -m transfer.classification.finetune checkpoint.pth --benchmark in-ft-mae --data imagenet
"""

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from timm.loss.cross_entropy import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn

from mimbench.data import ImageList
from mimbench.files import write_json
from mimbench.loop import Learner, LoopConfig, Moment, Place, fit
from mimbench.memory import Halving
from mimbench.metrics import top_percent, write_outcomes
from mimbench.optim import Schedule, layer_decay_groups, plan_batch, scaled_lr
from mimbench.protocol import ImageConfig, run_digest
from mimbench.runtime import Precision, Ranks, pick_device, process_group
from mimbench.weights import VitSpec, VitWeights
from transfer.classification.classifier import Pool, at_size, build_classifier
from transfer.classification.recipes import Name, Recipe, recipe_for
from transfer.classification.training import TrainImages, predict

logger = logging.getLogger(__name__)

VERSION = 1
MAIN_METRIC = "top1"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """timm's training augmentation."""

    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    erase: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1

    @property
    def mixes(self) -> bool:
        """Images are mixed, which takes an even number of them."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class Config(ImageConfig):
    """Everything that may move the number; null takes the recipe's value for the model's size."""

    recipe: Name = "mae"
    epochs: int | None = None
    warmup: int | None = None
    batch: int | None = None
    lr: float | None = None
    """For 256 images (recipes mae and hpm) or for the batch (beit)."""
    layer_decay: float | None = None
    drop_path: float | None = None
    pool: Pool | None = None
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    clip_grad: float | None = None
    augment: Augmentation = Augmentation()
    precision: Precision = "bf16"
    report: Literal["last", "best"] = "last"
    eval_every: int = 1
    """Epochs between two looks at val."""

    def resolve(self, width: int) -> Recipe:
        """Return the recipe with this configuration's own values."""
        own = {
            name: getattr(self, name)
            for name in ("epochs", "warmup", "batch", "lr", "layer_decay", "drop_path", "pool")
            if getattr(self, name) is not None
        }
        return replace(recipe_for(self.recipe, width), **own)


def train_transform(config: Config, spec: VitSpec) -> Any:
    """Return timm's training transform: normalised tensors, erased after normalisation."""
    augment = config.augment
    return create_transform(
        input_size=config.image_size,
        is_training=True,
        scale=augment.scale,
        hflip=augment.flip,
        # as in the references: RandAugment stands in for colour jitter
        color_jitter=0.0,
        auto_augment=augment.randaugment,
        interpolation=config.interpolation,
        re_prob=augment.erase,
        re_mode="pixel",
        re_count=1,
        mean=spec.mean,
        std=spec.std,
    )


class FineTune(Learner):
    """The whole network, trained with mixed images and soft targets."""

    def __init__(
        self,
        weights: VitWeights,
        config: Config,
        val: ImageList,
        ranks: Ranks,
    ) -> None:
        self.config, self.val, self.ranks = config, val, ranks
        self.recipe = recipe = config.resolve(weights.spec.embed_dim)
        self.device = pick_device(config.machine.device, ranks.local)
        sized = at_size(weights, config.image_size)
        self.spec = sized.spec
        model, self.dropped = build_classifier(
            sized,
            len(val.classes),
            pool=recipe.pool,
            drop_path=recipe.drop_path,
            seed=config.seed,
        )
        if self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model = model.to(self.device)
        if config.machine.compile:
            # in place: the names in saved states stay the same
            self.model.compile()
        self.optimizer = make_optimizer(self.model, config, recipe, self.spec.depth)
        peak = scaled_lr(recipe.lr, recipe.batch) if recipe.scaled else recipe.lr
        self.schedule = Schedule(
            peak=peak, epochs=recipe.epochs, warmup=recipe.warmup, floor=config.min_lr
        )
        self.mix, self.criterion = make_mixing(config.augment, len(val.classes))
        self.history: dict[str, list[float]] = {}
        self.ranked = torch.empty(0)

    def loss(self, model: nn.Module, batch: Any, at: Moment) -> dict[str, Tensor]:
        """Return the soft-target cross-entropy of one mixed micro-batch."""
        del at
        images, labels = batch.data
        if self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        return {"loss": self.criterion(model(images).float(), labels)}

    def rate(self, at: Moment) -> float:
        """Return the learning rate of the last layer."""
        return self.schedule(at.fraction)

    def end_epoch(self, at: Moment) -> dict[str, float]:
        """Score val when it is due."""
        if at.epoch % self.config.eval_every == 0 or at.step >= at.steps:
            ranked = self.predict()
            labels = torch.from_numpy(self.val.labels)
            self.history[str(at.epoch)] = [top_percent(ranked, labels, k) for k in (1, 5)]
            self.ranked = ranked
        return {"top1": max((tops[0] for tops in self.history.values()), default=0.0)}

    def predict(self) -> Tensor:
        """Return the five best classes of every val image."""
        return predict(
            self.model,
            self.spec,
            self.val,
            self.config.preprocess(),
            self.config.machine,
            ranks=self.ranks,
            precision=self.config.precision,
        )

    def state(self) -> dict[str, Any]:
        """Return the scores of all epochs so far, and the last predictions."""
        return {"history": self.history, "ranked": self.ranked}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the scores."""
        self.history, self.ranked = state["history"], state["ranked"]


def make_optimizer(
    model: nn.Module, config: Config, recipe: Recipe, depth: int
) -> torch.optim.Optimizer:
    """Return AdamW with a group for each level and weight decay."""
    groups = layer_decay_groups(
        model.named_parameters(),
        depth=depth,
        decay=recipe.layer_decay,
        weight_decay=config.weight_decay,
    )
    # names are ours, and a saved state holds plain data only
    plain = [{k: v for k, v in group.items() if k != "names"} for group in groups]
    return torch.optim.AdamW(plain, lr=recipe.lr, betas=(0.9, 0.999), fused=True)


def make_mixing(augment: Augmentation, classes: int) -> tuple[Mixup | None, nn.Module]:
    """Return timm's mixup and the loss for what it gives."""
    if augment.mixes:
        mix = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            prob=1.0,
            switch_prob=0.5,
            mode="batch",
            label_smoothing=augment.smoothing,
            num_classes=classes,
        )
        return mix, SoftTargetCrossEntropy()
    if augment.smoothing > 0:
        return None, LabelSmoothingCrossEntropy(augment.smoothing)
    return None, nn.CrossEntropyLoss()


def run(weights: VitWeights, config: Config, out: Path) -> dict[str, float]:
    """Return top-1 and top-5 of the reported epoch."""
    train, val = config.images()
    with process_group() as ranks:
        return train_classifier(weights, train, val, config, out, ranks)


def train_classifier(
    weights: VitWeights,
    train: ImageList,
    val: ImageList,
    config: Config,
    out: Path,
    ranks: Ranks,
) -> dict[str, float]:
    """Fine-tune on one list, score the other; out of memory halves the micro-batch and goes on."""
    room = Halving(size=config.machine.max_batch)
    digest = run_digest(weights, train, val, config)

    def attempt(size: int) -> FineTune:
        machine = replace(config.machine, max_batch=size)
        # made anew, so that a failed attempt leaves nothing behind; fit restores what was saved
        learner = FineTune(weights, replace(config, machine=machine), val, ranks)
        recipe = learner.recipe
        most = micro_batch(recipe.batch, ranks.world, size, even=config.augment.mixes)
        place = Place(
            out=out,
            digest=digest,
            ranks=ranks,
            machine=replace(machine, max_batch=most),
            label="fine-tune",
        )
        loop = LoopConfig(
            epochs=recipe.epochs,
            batch=recipe.batch,
            seed=config.seed,
            precision=config.precision,
            clip_grad=config.clip_grad,
            best="top1",
            best_is="largest",
            log_every=20,
            tensorboard=False,
        )
        fit(learner, TrainImages(train, train_transform(config, learner.spec)), loop, place)
        return learner

    # several processes must agree on the size, and one that fails leaves the others waiting
    learner = room.attempt(attempt) if ranks.world == 1 else attempt(room.size)
    return _report(learner, config, out, ranks, room)


def micro_batch(batch: int, world: int, at_most: int, *, even: bool) -> int:
    """Return the images of one process and micro-step; an even number where images are mixed."""
    for most in range(at_most, 0, -1):
        size = plan_batch(batch, world=world, at_most=most).per_process
        if not even or size % 2 == 0:
            return size
    return plan_batch(batch, world=world, at_most=2).per_process


def _report(
    learner: FineTune, config: Config, out: Path, ranks: Ranks, room: Halving
) -> dict[str, float]:
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
    if ranks.main:
        write_outcomes(out, learner.val, learner.ranked.numpy())
        recipe, world = learner.recipe, ranks.world
        size = micro_batch(recipe.batch, world, room.size, even=config.augment.mixes)
        extra = {
            "recipe": {k: v for k, v in recipe.__dict__.items() if k != "note"},
            "note": recipe.note,
            "best_epoch": int(best),
            "outcomes": "of the last epoch",
            "tensors_not_taken": learner.dropped,
            "micro_batch": size,
            "micro_steps": recipe.batch // (size * world),
            "effective_batch": recipe.batch,
            "memory_halved": room.halved,
        }
        write_json(out / "extra.json", extra)
    return metrics


if __name__ == "__main__":
    from mimbench.task_main import task_main

    sys.exit(task_main("transfer.classification.finetune"))
