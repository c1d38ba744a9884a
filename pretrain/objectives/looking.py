"""What masks may follow at a step: asked of teacher and student as far as they are needed, no further."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mimbench.system.seeds import derive_seed
from mimbench.training.learner import Learner, StepInfo
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.config import Config
from pretrain.masks.salience import outgoing
from pretrain.models.autoencoder import MaskedAutoencoder, split
from pretrain.models.reconstruction import patch_weights, spread_choice
from pretrain.models.teacher import Teacher, Views

GLANCE, CHOICE = -1, -2
"""Streams of random numbers beside the masks': where a teacher looks, what decoders are given."""
FREE = frozenset[masks.Need]({"images", "generator", "salience", "trial"})
"""Needs for which no teacher is asked."""


class Looking(Learner):
    """The part of a learner that provides what masks, weights and choices of patches follow."""

    config: Config
    spec: VitSpec
    strategy: masks.MaskStrategy
    student: MaskedAutoencoder
    teacher: Teacher | None
    generator: torch.Generator

    def patch_losses(
        self,
        prediction: Tensor,
        patches: Tensor,
        images: Tensor,
        hidden: Tensor,
        views: Views | None,
    ) -> Tensor:
        """Return the reconstruction loss of each hidden patch (b, m)."""
        raise NotImplementedError

    def dice(self, at: StepInfo, stream: int) -> torch.Generator:
        """Return the generator at a step's start: the same numbers on every process and micro-step.

        Each takes its own rows of them; streams are apart, so that who draws from one moves no other.
        """
        return self.generator.manual_seed(derive_seed(self.config.training.seed, at.step, stream))

    def chosen(self, inp: masks.MaskInput, hidden: Tensor, at: StepInfo) -> Tensor:
        """Return the hidden patches that decoders are given: by default all of them."""
        share, m = self.config.objective.share, hidden.shape[1]
        if share == 1:
            return hidden
        count, dice = max(2, round(m * share)), self.dice(at, CHOICE)
        keys, offset = inp.uniform(dice, inp.patches), inp.uniform(dice, 1)
        if inp.difficulty is not None:
            keys = inp.difficulty
        return hidden.gather(1, spread_choice(keys.gather(1, hidden), offset, count))

    def weigh(self, inp: masks.MaskInput, hidden: Tensor) -> Tensor | None:
        """Return what weighs hidden patches (b, m) in the reconstruction loss."""
        objective = self.config.objective
        values = inp.attention if objective.weights == "attention" else inp.difficulty
        if objective.weights == "none" or values is None:
            return None
        return patch_weights(values.gather(1, hidden), objective.weights_temperature)

    def look(
        self, patches: Tensor, normalised: Tensor, images: Tensor, at: StepInfo
    ) -> tuple[masks.MaskInput, Views | None]:
        """Ask the teacher for what mask and target need at this moment, and for nothing else."""
        config, needs = self.config.teacher, self.strategy.needs
        mask_input = masks.MaskInput(
            batch=len(patches),
            grid=self.spec.grid,
            device=patches.device,
            epoch_progress=(at.epoch + 1) / at.epochs,
            step_progress=(at.step + 1) / at.steps,
            first=at.first,
            whole=at.batch,
            images=normalised if "images" in needs else None,
        )
        asked = needs if not self.strategy.idle(mask_input) else frozenset[masks.Need]()
        if at.step % config.every:
            asked &= FREE
        elif self.config.objective.weights != "none":
            asked |= {self.config.objective.weights}
        judged, attends = "difficulty" in asked, "attention" in asked
        whole = judged and config.tokens == 1 and config.look == "whole"
        views, difficulty, attention = None, None, None
        if self.teacher is not None and (whole or self.config.objective.target == "ema"):
            views = self.teacher(patches, difficulty=whole, attention=attends)
            difficulty, attention = views.difficulty, views.attention
        elif self.teacher is not None and attends:
            attention = self.teacher.attend(patches)
        if self.teacher is not None and judged and config.look == "quarter":
            keys = mask_input.uniform(self.dice(at, GLANCE), mask_input.patches)
            difficulty = self.teacher.sample(patches, keys)
        elif self.teacher is not None and judged and not whole:
            difficulty = self.teacher.glance(patches, config.tokens)
        if attention is not None:
            attention = attention.mean(dim=1)
        return replace(
            mask_input,
            difficulty=difficulty,
            attention=attention,
            salience=self.outgoing(patches) if "salience" in asked else None,
            trial=partial(self.trial, patches, images, views) if "trial" in asked else None,
        ), views

    @torch.no_grad()
    def outgoing(self, patches: Tensor) -> Tensor:
        """Return how much the student's embedded patches attend to each (b, n)."""
        return outgoing(self.student.encoder.embed(patches)[:, 1:])

    @torch.no_grad()
    def trial(self, patches: Tensor, images: Tensor, views: Views | None, mask: Tensor) -> Tensor:
        """Return the student's mean loss (b,) under masks (b, n)."""
        visible, hidden = split(mask, self.strategy.count(mask.shape[1]))
        prediction = self.student(patches, visible, hidden).prediction
        return self.patch_losses(prediction, patches, images, hidden, views).mean(dim=1)
