"""The steps that are compared: the project's own and the plain one, and the proof that they agree."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.reference_step import PlainHpm, PlainStep, mark_losses
from bench.stopwatch import Mark, ignore
from mimbench.system.runtime import Precision, autocast
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from pretrain import masks
from pretrain.checkpoints.layouts import from_official, to_official
from pretrain.config import Config, read_config
from pretrain.models.autoencoder import Outputs
from pretrain.models.teacher import Views
from pretrain.train import build_learner

EPOCHS, PER_EPOCH = 200, 10

HPM = ("objective.target=normalised", "objective.epsilon=1e-6")
"""Normalised pixels; the released 1e-6 in the logarithm, so that both compute the same."""
MAE = ("objective.target=normalised", "objective.predict_loss=none", "mask.name=random")


@dataclass(frozen=True, kw_only=True)
class StepSetting:
    """What the steps of one comparison have in common."""

    size: str
    device: torch.device
    precision: Precision
    batch: int

    def recipe(self, further: Sequence[str]) -> Config:
        """Return a config: the published recipe for a ViT of this size."""
        own = [f"encoder.size={self.size}", f"training.batch={self.batch}"]
        own += [f"training.precision={self.precision}", "training.epochs=200"]
        return read_config("hpm_vit_base_16", [*own, *further])

    def images(self, batch: int | None = None) -> Tensor:
        """Return crops as the loader hands them over: noise of several coarsenesses, in bytes."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch if batch is None else batch, 3)
        total = torch.zeros(*shape, 224, 224)
        for side in (7, 14, 56, 224):
            noise = torch.rand(*shape, side, side, generator=generator)
            total += torch.nn.functional.interpolate(noise, 224)
        return (total * 255 / 4).to(torch.uint8).to(self.device)


class OurStep:
    """A step of the project's own learner, its parts marked by hooks from outside."""

    def __init__(
        self, setting: StepSetting, further: Sequence[str] = HPM, *, back: int = 0
    ) -> None:
        """Build the learner.

        Args:
            setting: The comparison.
            further: What the config changes.
            back: Steps before the last one; there the schedule chooses the most by difficulty.
        """
        torch.manual_seed(0)
        self.setting, self.config = setting, setting.recipe(further)
        self.learner = build_learner(self.config, setting.device, Path(tempfile.gettempdir()))
        self.learner.open_bank(setting.batch)
        self.trained = [p for g in self.learner.optimizer.param_groups for p in g["params"]]
        self.at = StepInfo(
            step=EPOCHS * PER_EPOCH - 1 - back,
            steps_per_epoch=PER_EPOCH,
            epochs=EPOCHS,
            batch=setting.batch,
        )
        set_lr(self.learner.optimizer, 1e-6)

    def loss(self, images: Tensor) -> dict[str, Tensor]:
        """Return the learner's figures."""
        count, data = len(images), images
        if self.learner.bank is not None:
            whole = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]).repeat(count, 1)
            data = {"image": images, "place": whole}
        batch = Batch(torch.arange(count), data, ())
        with autocast(self.setting.device, self.setting.precision):
            return self.learner.loss(self.learner.student, batch, self.at)

    def __call__(self, images: Tensor, mark: Mark = ignore) -> None:
        """Take one optimizer step on images in bytes."""
        learner = self.learner
        learner.optimizer.zero_grad(set_to_none=True)
        mark("rest")
        hooks = [] if mark is ignore else self._watch(mark)
        figures = self.loss(images)
        mark("losses")
        figures["loss"].backward()
        mark("encoder")
        for hook in hooks:
            hook.remove()
        torch.nn.utils.clip_grad_norm_(self.trained, 5.0, foreach=True)
        mark("clip")
        learner.optimizer.step()
        mark("optimizer")
        learner.after_update(self.at)
        mark("average")

    def _watch(self, mark: Mark) -> list[torch.utils.hooks.RemovableHandle]:
        """Mark the borders between parts, forward and backward."""
        student, teacher = self.learner.student, self.learner.teacher

        def encoded(_module: object, _inputs: object, latent: Tensor) -> None:
            mark("encoder")
            latent.register_hook(lambda _: mark("decoders"))

        def decoded(_module: object, _inputs: object, outputs: Outputs) -> None:
            mark("decoders")
            mark_losses([outputs.prediction, outputs.difficulty], mark)

        hooks = [
            student.encoder.register_forward_pre_hook(lambda *_: mark("masks")),
            student.encoder.register_forward_hook(encoded),
            student.register_forward_hook(decoded),
        ]
        if teacher is not None:
            hooks.append(teacher.register_forward_pre_hook(lambda *_: mark("rest")))
            hooks.append(teacher.register_forward_hook(lambda *_: mark("teacher")))
        return hooks


def plain(setting: StepSetting) -> PlainStep:
    """Return a plain step with masks of the same counts and the same average."""
    config = setting.recipe(HPM)
    spec = config.encoder.spec(config.data)
    hidden = masks.build(config.mask).count(spec.grid[0] * spec.grid[1])
    return PlainStep(
        PlainHpm(spec, config.decoder).to(setting.device),
        hidden=hidden,
        hard=hidden // 2,
        decay=config.teacher.decay(EPOCHS),
        precision=setting.precision,
    )


def plain_twin(ours: OurStep) -> PlainStep:
    """Return the plain step that begins with the same weights."""
    step, pixels = plain(ours.setting), 3 * ours.learner.spec.patch_size**2
    state = to_official(ours.learner.student.state_dict(), pixels=pixels)
    step.student.load_state_dict(state)
    step.teacher.load_state_dict(state)
    return step


def normalised(ours: OurStep, images: Tensor) -> Tensor:
    """Return images as the plain step gets them."""
    return ours.learner.normalise.of_bytes(images)


class StepDifference(NamedTuple):
    """How far two steps are apart, each figure relative to the plain one's size."""

    losses: float
    gradients: float
    """Over all parameters, the worst: the difference's norm by the gradient's, or by a thousandth of
    the whole gradient's where that is more."""
    difficulty: float

    @property
    def equal(self) -> bool:
        """Tell whether this is rounding."""
        return self.losses <= 1e-6 and self.gradients <= 1e-4 and self.difficulty <= 1e-4


def difference(ours: OurStep, theirs: PlainStep, images: Tensor) -> StepDifference:
    """Return how far losses, gradients and the teacher's answers are apart under one mask."""
    seen: dict[str, Tensor] = {}

    def keep_hidden(_module: object, inputs: tuple[Tensor, ...]) -> None:
        seen["hidden"] = inputs[2]

    def keep_difficulty(_module: object, _inputs: object, views: Views) -> None:
        assert views.difficulty is not None
        seen["difficulty"] = views.difficulty

    assert ours.learner.teacher is not None
    hooks = [
        ours.learner.student.register_forward_pre_hook(keep_hidden),
        ours.learner.teacher.register_forward_hook(keep_difficulty),
    ]
    ours.learner.optimizer.zero_grad()
    figures = ours.loss(images)
    figures["loss"].backward()
    for hook in hooks:
        hook.remove()
    mask = torch.zeros_like(seen["difficulty"], dtype=torch.bool)
    mask.scatter_(1, seen["hidden"], value=True)
    floats = normalised(ours, images)
    with autocast(images.device, ours.setting.precision):
        difficulty = theirs.look(floats)
        reconstruction, judged = theirs.losses(floats, mask)
    theirs.optimizer.zero_grad()
    (reconstruction + judged).backward()
    pairs = [(figures["reconstruction"], reconstruction), (figures["loss_prediction"], judged)]
    losses = max(_apart(a.detach(), b.detach()) for a, b in pairs)
    found = StepDifference(
        losses, _gradients_apart(ours, theirs), _apart(seen["difficulty"], difficulty)
    )
    ours.learner.optimizer.zero_grad()
    theirs.optimizer.zero_grad()
    return found


def _gradients_apart(ours: OurStep, theirs: PlainStep) -> float:
    plain = {n: p.grad for n, p in theirs.student.named_parameters() if p.grad is not None}
    wanted = from_official(plain)
    outputs = len(theirs.student.decoder_pred_losspred.weight)
    whole = torch.stack([g.norm() for g in plain.values()]).norm().item()
    worst = 0.0
    for name, parameter in ours.learner.student.named_parameters():
        assert parameter.grad is not None
        # reading folds the released head by a mean; gradients of what is averaged add up
        scale = outputs if name.startswith("predictor.pred.") else 1
        # what shifts all predictions or all keys alike has no gradient but rounding
        error = _apart(parameter.grad, wanted[name] * scale, least=1e-3 * whole)
        worst = max(worst, error)
    return worst


def _apart(one: Tensor, other: Tensor, *, least: float = 1e-12) -> float:
    one, other = one.float(), other.float()
    return ((one - other).norm() / other.norm().clamp(min=least)).item()
