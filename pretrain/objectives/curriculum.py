"""CL-MAE's step: the student learns under the masking network's masks, then the network from the student."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.system.errors import UserError
from mimbench.system.runtime import all_reduce_sum, all_rows, autocast
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from pretrain.config import Config
from pretrain.masks.curriculum import Strategy
from pretrain.models.initial import by_name, stream
from pretrain.models.masker import (
    MaskingNetwork,
    diversity_term,
    gated_losses,
    gauss_term,
    kl_term,
)
from pretrain.objectives.learner import Pretraining, parameter_groups
from pretrain.objectives.looking import Given


class CurriculumPretraining(Pretraining):
    """Masked reconstruction whose masks a network makes that is trained in turns with it."""

    strategy: Strategy

    def __init__(self, config: Config, device: torch.device, out: Path) -> None:
        super().__init__(config, device, out)
        if config.training.precision == "fp16":
            raise UserError(
                "the masking network's step does not scale its loss: train curriculum masks with "
                "training.precision bf16 or fp32"
            )
        masker = MaskingNetwork(self.spec)
        named = config.start.init == "named"
        masker.initialise(by_name(config.training.seed) if named else stream)
        self.masker = masker.to(device)
        # one optimizer in the released code; parameters without a gradient do not move in either
        self.masker_optimizer = torch.optim.AdamW(
            parameter_groups(self.masker, config.optimizer.weight_decay),
            betas=config.optimizer.betas,
        )
        self.kept: list[Given] = []

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return the student's losses; the images are kept for the network's turn."""
        self.kept.append(Given.of(batch))
        return super().loss(model, batch, at)

    def after_update(self, at: StepInfo) -> None:
        """Let the masking network take its step on the same images, against the new student."""
        super().after_update(at)
        # `at` already counts the step just taken
        done = StepInfo(
            step=at.step - 1, steps_per_epoch=at.steps_per_epoch, epochs=at.epochs, batch=at.batch
        )
        set_lr(self.masker_optimizer, self.rate(done))
        self.masker_optimizer.zero_grad(set_to_none=True)
        self.terms = self.learn(self.kept, self.strategy.factor(done.epoch, done.epochs))
        self.kept = []
        for parameter in self.masker.parameters():
            assert parameter.grad is not None
            parameter.grad = all_reduce_sum(parameter.grad)
        limit = self.config.optimizer.clip_grad
        norm = torch.nn.utils.clip_grad_norm_(
            self.masker.parameters(), torch.inf if limit is None else limit
        )
        if not torch.isfinite(norm):
            raise UserError(
                f"the masking network's gradient is not finite at optimizer step {at.step}; lower the "
                "learning rate"
            )
        self.masker_optimizer.step()

    def learn(self, parts: list[Given], factor: float) -> dict[str, float]:
        """Accumulate the network's gradients of this process; return its loss's terms.

        Every term is one of the whole effective batch, so that its division changes nothing: the terms
        of all values are differentiated first, then each part's values by the network's weights.
        """
        self.student.requires_grad_(requires_grad=False)
        values: list[Tensor] = []
        pulls: list[Tensor] = []
        losses: list[Tensor] = []
        for given in parts:
            with autocast(self.device, self.config.training.precision):
                _, patches = self.prepare(given.images)
                values.append(self.masker(self.student.encoder.embed(patches)[:, self.first :]))
                leaf = values[-1].detach().requires_grad_()
                found = gated_losses(
                    self.student,
                    patches,
                    leaf,
                    lambda prediction, places, p=patches, g=given: self.patch_losses(
                        prediction, p, g.images, places, None
                    ),
                )
            losses.append(found.detach())
            # of the numerator alone: the denominator is the whole batch's
            pulls.append(torch.autograd.grad((found * (1 - leaf)).sum(), leaf)[0])
        self.student.requires_grad_(requires_grad=True)
        own = torch.cat(values)
        whole = all_rows(own.detach()).requires_grad_()
        hidden = (1 - whole.detach()).sum()
        missed = all_reduce_sum((torch.cat(losses) * (1 - own.detach())).sum())
        terms = self.shaping(whole)
        (shaped,) = torch.autograd.grad(sum(terms.values(), torch.zeros(())), whole)
        pull = torch.cat(pulls) / hidden + missed / hidden.square()
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        shaped = shaped[rank * len(own) : (rank + 1) * len(own)]
        own.backward(factor * pull + shaped)
        return {
            "reconstruction": (missed / hidden).item(),
            **{name: term.item() for name, term in terms.items()},
        }

    @property
    def first(self) -> int:
        """Tokens before the patches."""
        return self.spec.class_tokens

    @torch.no_grad()
    def wishes(self, patches: Tensor) -> Tensor:
        """Return how much the masking network wants each patch (b, n) to be seen."""
        return self.masker(self.student.encoder.embed(patches)[:, self.first :])

    def shaping(self, keep: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms that say what masks should look like, for all values (B, n)."""
        s = self.strategy
        return {
            "gauss": s.gauss * gauss_term(keep),
            "kl": s.kl * s.kl_images * kl_term(keep, 1 - s.ratio),
            "diversity": s.diversity * diversity_term(keep),
        }

    def further_tensors(self) -> dict[str, Tensor]:
        """Return the masking network's tensors, for exports."""
        return {f"masker.{name}": t for name, t in self.masker.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return the teacher, the network and its optimizer."""
        return {
            **super().state(),
            "masker": self.masker.state_dict(),
            "masker_optimizer": self.masker_optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        super().restore(state)
        self.masker.load_state_dict(state["masker"])
        self.masker_optimizer.load_state_dict(state["masker_optimizer"])
