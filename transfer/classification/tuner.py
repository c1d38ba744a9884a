"""What fine-tuning trains and how: configuration, optimizer, one step, scoring of val."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.optim.lamb import Lamb
from torch import Tensor, nn
from typing_extensions import Self

from mimbench.data.lists import ImageList
from mimbench.features.protocol import ImageConfig
from mimbench.model import Spec, Weights
from mimbench.scores.metrics import top_percent
from mimbench.system.config import later
from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device
from mimbench.training.batches import Batch, Repeats
from mimbench.training.loop import Learner, StepInfo
from mimbench.training.optim import Schedule, layer_decay_groups, scaled_lr
from mimbench.vit.depth import StochasticDepth, image_seeds
from transfer.classification.augmentation import Augmentation, Mixing, make_criterion
from transfer.classification.classifier import Pool, at_size, build_classifier
from transfer.classification.recipes import FinetuneRecipe, Name, recipe_for
from transfer.classification.staged_recipes import AVERAGED, DECAY, StagedName, staged_recipe
from transfer.classification.training import predict


@dataclass(frozen=True, kw_only=True)
class Config(ImageConfig):
    """Everything that may move the number; null takes the recipe's value for the model's size."""

    recipe: Name | StagedName = "mae"
    epochs: int | None = None
    warmup: int | None = None
    batch: int | None = None
    lr: float | None = None
    """For 256 images (recipes mae and hpm) or for the batch (beit)."""
    layer_decay: float | None = None
    drop_path: float | None = None
    pool: Pool | None = None
    min_lr: float = 1e-6
    weight_decay: float | None = 0.05
    clip_grad: float | None = None
    augment: Augmentation = field(default_factory=Augmentation)
    precision: Precision = "bf16"
    report: Literal["last", "best"] = "last"
    eval_every: int = 1
    """Epochs between two looks at val."""
    ema: float | None = later(None)
    """Decay of the average of the weights that is scored; 0 scores the last weights."""

    def canonical(self) -> Self:
        """Return the same, looked at every epoch: where the last one is reported that moves nothing."""
        every = 1 if self.report == "last" else self.eval_every
        ema = DECAY if self.ema is None and self.recipe in AVERAGED else self.ema
        return replace(super().canonical(), eval_every=every, ema=ema)

    def resolve(self, width: int, model: str = "") -> FinetuneRecipe:
        """Return the recipe with this configuration's own values.

        Args:
            width: Of the image vector, which tells sizes of plain ViTs apart.
            model: The architecture's name, which tells networks with levels apart.
        """
        own = {
            name: getattr(self, name)
            for name in (
                "epochs",
                "warmup",
                "batch",
                "lr",
                "layer_decay",
                "drop_path",
                "pool",
                "ema",
                "weight_decay",
            )
            if getattr(self, name) is not None
        }
        if self.recipe in ("fcmae", "simmim", "spark"):
            return replace(staged_recipe(self.recipe, model), **own)
        return replace(recipe_for(self.recipe, width), **own)

    def schedule(self, recipe: FinetuneRecipe) -> Callable[[float], float]:
        """Return the learning rate of the last layer as a function of the fractional epoch."""
        peak = scaled_lr(recipe.lr, recipe.batch) if recipe.scaled else recipe.lr
        return Schedule(peak=peak, epochs=recipe.epochs, warmup=recipe.warmup, floor=self.min_lr)

    def repeats(self, recipe: FinetuneRecipe) -> Repeats | None:
        """Return how often an epoch sees an image, where that is not once."""
        if recipe.repeated > 1:
            return Repeats(views=recipe.repeated, group=min(recipe.mixed, recipe.batch))
        return None


class FineTune(Learner):
    """The whole network, trained with mixed images and soft targets."""

    sometimes = frozenset({"top1"})

    def __init__(
        self,
        weights: Weights,
        config: Config,
        val: ImageList,
        ranks: Ranks,
    ) -> None:
        self.config, self.val, self.ranks = config, val, ranks
        self.recipe = recipe = config.resolve(weights.spec.embed_dim, weights.spec.model)
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
        self.average: nn.Module | None = None
        if recipe.ema:
            self.average = copy.deepcopy(model).to(self.device)
            self.average.eval().requires_grad_(requires_grad=False)
        if self.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.depth = StochasticDepth(model)
        self.model = model.to(self.device)
        if config.machine.compile:
            # in place: the names in saved states stay the same
            self.model.compile()
        self.optimizer = make_optimizer(self.model, recipe, self.spec)
        self.schedule = config.schedule(recipe)
        self.mix = make_mixing(config, recipe, len(val.classes))
        self.criterion = (
            BinaryCrossEntropy(0.0) if recipe.binary else make_criterion(config.augment)
        )
        self.history: dict[str, list[float]] = {}
        self.ranked = torch.empty(0)

    def loss(self, model: nn.Module, batch: Any, at: StepInfo) -> dict[str, Tensor]:
        """Return the soft-target cross-entropy of one mixed micro-batch."""
        images, labels = batch.data
        if self.device.type == "cuda":
            images = images.contiguous(memory_format=torch.channels_last)
        if self.mix is not None:
            images, labels = self.mix(images, labels, step=at.step, first=at.first)
        self.depth.draw(image_seeds(self.config.seed, at.step, at.first, len(images)), self.device)
        return {"loss": self.criterion(model(images).float(), labels)}

    def rate(self, at: StepInfo) -> float:
        """Return the learning rate of the last layer."""
        return self.schedule(at.fraction)

    @torch.no_grad()
    def after_update(self, at: StepInfo) -> None:
        """Move the average of the weights, batch norms' statistics included, towards them."""
        del at
        if self.average is None:
            return
        own = self.model.state_dict()
        for name, kept in self.average.state_dict().items():
            if kept.is_floating_point():
                kept.lerp_(own[name], 1 - self.recipe.ema)
            else:
                kept.copy_(own[name])

    def unscored(self, at: StepInfo) -> bool:
        """Tell whether val is due for the epoch that ended, and not scored yet."""
        due = at.epoch % self.config.eval_every == 0 or at.step >= at.steps
        return due and str(at.epoch) not in self.history

    def end_epoch(self, at: StepInfo) -> dict[str, float]:
        """Score val when it is due; an epoch that was not scored has no figure."""
        if not self.unscored(at):
            return {}
        self.ranked = self.predict()
        labels = torch.from_numpy(self.val.labels)
        tops = [top_percent(self.ranked, labels, k) for k in (1, 5)]
        self.history[str(at.epoch)] = tops
        return {"top1": tops[0]}

    def rehearse(self, size: int) -> None:
        """Take the memory of one step with `size` images at a time, and leave nothing behind."""
        try:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            # the optimizer's two moments, and the gradients once more for what processes exchange
            spare = [torch.empty_like(p) for p in trained for _ in range(3)]
            side = self.config.image_size
            images = torch.zeros(size, 3, side, side, device=self.device)
            labels = torch.zeros(size, dtype=torch.int64, device=self.device)
            batch = Batch(torch.arange(size), [images, labels], ())
            start = StepInfo(step=0, steps_per_epoch=1, epochs=1, batch=size)
            with autocast(self.device, self.config.precision):
                loss = self.loss(self.model, batch, start)["loss"]
            loss.backward()
            del spare
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def predict(self) -> Tensor:
        """Return the five best classes of every val image."""
        return predict(
            self.model if self.average is None else self.average,
            self.spec,
            self.val,
            self.config.preprocess(),
            self.config.machine,
            ranks=self.ranks,
            precision=self.config.precision,
        )

    def state(self) -> dict[str, Any]:
        """Return the scores of all epochs so far, and the last predictions."""
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {"history": self.history, "ranked": self.ranked, **average}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the scores."""
        self.history, self.ranked = state["history"], state["ranked"]
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def make_optimizer(model: nn.Module, recipe: FinetuneRecipe, spec: Spec) -> torch.optim.Optimizer:
    """Return the recipe's optimizer with a group for each level and weight decay."""
    groups = layer_decay_groups(
        model.named_parameters(),
        spec=spec,
        decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
        joined=recipe.joined,
    )
    # names are ours, and a saved state holds plain data only
    plain = [{k: v for k, v in group.items() if k != "names"} for group in groups]
    if recipe.optimizer == "lamb":
        # SparK's arguments: no clipping, every tensor adapted
        usual = {"max_grad_norm": 1e7, "always_adapt": True, "bias_correction": False}
        return Lamb(plain, lr=recipe.lr, **usual)
    return torch.optim.AdamW(plain, lr=recipe.lr, betas=(0.9, 0.999), fused=True)


def make_mixing(config: Config, recipe: FinetuneRecipe, classes: int) -> Mixing | None:
    """Return the mixing of images, if there is any: a group is never more than the batch."""
    if not config.augment.mixes:
        return None
    group = min(recipe.mixed, recipe.batch)
    if group % 2:
        raise UserError(f"images are mixed in pairs: a batch of {recipe.batch} has to be even")
    return Mixing(config.augment, classes, group=group, seed=config.seed)
