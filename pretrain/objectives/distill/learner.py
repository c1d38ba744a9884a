"""A distillation step: crops -> teacher -> masks -> student -> two cross-entropies."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.checkpoints.files import write_weights
from mimbench.system.files import value_digest
from mimbench.system.seeds import derive_seed
from mimbench.training.batches import Batch
from mimbench.training.learner import LAST, Learner, StepInfo
from mimbench.training.optim import Schedule, scaled_lr
from mimbench.vit.normalise import Normalisation
from mimbench.vit.weights import VitWeights
from pretrain import masks
from pretrain.checkpoints.handover import ENCODER, TEACHER_ENCODER
from pretrain.masks import Amount, MaskInput
from pretrain.objectives.distill.config import AmountConfig, DistillConfig
from pretrain.objectives.distill.loss import GLOBALS, DistillLoss, Logits
from pretrain.objectives.distill.model import DistillTeacher, Student, VitWithHead
from pretrain.objectives.learner import parameter_groups


def cosine(start: float, end: float, share: float) -> float:
    """Return a value between start and end on half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class Distillation(Learner):
    """DINO and iBOT, with masks of any strategy that distillation can serve."""

    def __init__(self, config: DistillConfig, device: torch.device, out: Path) -> None:
        self.config, self.device, self.out = config, device, out
        self.spec = config.spec()
        self.strategy = masks.build(config.mask)
        self.student = Student(
            self.spec,
            config.head,
            drop_path=config.drop_path,
            patches=config.objective.patch_weight > 0,
        ).to(device)
        self.student.backbone.recompute = config.machine.recompute
        self.model = self.student
        self.teacher = DistillTeacher(self.student, config.head).to(device)
        self.criterion = DistillLoss(config.objective, config.head.outputs).to(device)
        o, t = config.optimizer, config.training
        # the first group decays, the second does not
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, o.weight_decay), betas=o.betas, fused=True
        )
        self.schedule = Schedule(
            peak=scaled_lr(o.base_lr, t.batch),
            epochs=t.epochs,
            warmup=o.warmup_epochs,
            floor=o.min_lr,
        )
        self.last = [
            p for name, p in self.student.head.named_parameters() if not name.startswith("mlp.")
        ]
        self.normalise = Normalisation(self.spec.mean, self.spec.std).to(device)

    def rate(self, at: StepInfo) -> float:
        """Return the learning rate; as in DINO the last step of the warm-up takes the peak already."""
        warmup = round(self.config.optimizer.warmup_epochs * at.steps_per_epoch)
        if at.step < warmup:
            return self.schedule.peak * at.step / max(warmup - 1, 1)
        return self.schedule(at.fraction)

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return the loss of a batch of multi-crop images, and its terms."""
        images = self.crops(batch.data["global"])
        local = self.crops(batch.data["local"]) if "local" in batch.data else None
        said, attention = self.teacher(images, attention="attention" in self.strategy.needs)
        mask = self.hide(attention, len(images) // GLOBALS, at)
        student: Logits = model(images, mask, local)
        temperature = self.config.objective.temperature(at.epoch)
        figures = self.criterion(student, said, mask, temperature)
        return {**figures, "hidden": mask.float().mean()}

    def crops(self, images: Tensor) -> Tensor:
        """Return (b, crops, 3, s, s) normalised, crop after crop."""
        return self.normalise.of_bytes(images.transpose(0, 1).flatten(0, 1))

    def hide(self, attention: Tensor | None, images: int, at: StepInfo) -> Tensor:
        """Return the masks (2 b, n) of both global crops, in the crops' order."""
        rows = [None] * GLOBALS if attention is None else list(attention.chunk(GLOBALS))
        found = []
        for crop, row in enumerate(rows):
            inp = MaskInput(
                batch=images,
                grid=self.spec.grid,
                device=self.device,
                epoch_progress=(at.epoch + 1) / at.epochs,
                step_progress=(at.step + 1) / at.steps,
                attention=row,
                first=at.first,
                whole=at.batch,
            )
            amount = draw(self.config.amount, inp, self._shares(at), self._seeded(at, 3, crop))
            if at.epoch < self.config.amount.start_epoch:
                amount = Amount(share=torch.zeros_like(amount.share), again=0.0)
            inp = replace(inp, amount=amount)
            found.append(self.strategy(inp, self._seeded(at, 1, crop)))
        return torch.cat(found)

    def _shares(self, at: StepInfo) -> tuple[float, float]:
        """Return the step's two draws from [0, 1): on the host, which needs to know them."""
        generator = torch.Generator().manual_seed(
            derive_seed(self.config.training.seed, at.step, 2)
        )
        one, other = torch.rand(2, generator=generator).tolist()
        return one, other

    def _seeded(self, at: StepInfo, *parts: int) -> torch.Generator:
        seed = derive_seed(self.config.training.seed, at.step, *parts)
        return torch.Generator().manual_seed(seed)

    def before_update(self, at: StepInfo) -> None:
        """Clip each tensor's gradient, keep the last layer still at first, move the weight decay."""
        o = self.config.optimizer
        if at.epoch < o.freeze_last_epochs:
            for parameter in self.last:
                parameter.grad = None
        if o.clip_grad is not None:
            for parameter in self.model.parameters():
                torch.nn.utils.clip_grad_norm_(parameter, o.clip_grad)
        decay = cosine(o.weight_decay, o.weight_decay_end, at.step / at.steps)
        self.optimizer.param_groups[0]["weight_decay"] = decay

    def after_update(self, at: StepInfo) -> None:
        """Let teacher and centres follow."""
        # `at` already counts the step just taken
        self.teacher.follow(cosine(self.config.teacher_momentum, 1.0, (at.step - 1) / at.steps))
        self.criterion.follow()

    def saved(self, checkpoint: Path, at: StepInfo) -> None:
        """Write both encoders; published evaluations take the teacher's."""
        out = self.out if checkpoint.name == LAST else self.out / checkpoint.stem
        source = value_digest({"config": self.config.digest(), "step": at.step})
        networks: tuple[tuple[str, str, VitWithHead], ...] = (
            ("student", ENCODER, self.student),
            ("teacher", TEACHER_ENCODER, self.teacher),
        )
        for which, name, network in networks:
            weights = VitWeights(
                spec=self.spec,
                tensors=network.backbone.state_dict(),
                format="mimbench-pretrain",
                digest=source,
                which=which,
            )
            write_weights(out / name, weights)

    def state(self) -> dict[str, Any]:
        """Return teacher and centres."""
        return {"teacher": self.teacher.state_dict(), "centres": self.criterion.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self.teacher.load_state_dict(state["teacher"])
        self.criterion.load_state_dict(state["centres"])


def draw(
    amount: AmountConfig, inp: MaskInput, step: tuple[float, float], crop: torch.Generator
) -> Amount:
    """Return how much of each of one crop's images is hidden.

    Args:
        amount: The distribution.
        inp: Which images of the effective batch these are.
        step: Two numbers from [0, 1) that both crops of a step share.
        crop: A generator that differs between them.
    """
    low, width = amount.ratio - amount.spread, 2 * amount.spread
    share, again = (low + width * number for number in step)
    masked = inp.uniform(crop, 1).flatten() < amount.probability
    each = inp.uniform(crop, 1).flatten()
    shares = low + width * each if amount.per == "crop" else torch.full_like(each, share)
    return Amount(share=torch.where(masked, shares, 0.0), again=again)
