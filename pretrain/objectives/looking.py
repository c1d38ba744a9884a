"""What masks may follow at a step: asked of teacher and student as far as they are needed, no further."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mimbench.system.seeds import derive_seed
from mimbench.training.batches import Batch
from mimbench.training.learner import Learner, StepInfo
from mimbench.vit.weights import VitSpec
from pretrain.config import Config
from pretrain.masks import MaskInput, MaskStrategy, Need, hide_largest
from pretrain.masks.salience import outgoing
from pretrain.models.autoencoder import MaskedAutoencoder, split
from pretrain.models.encoder import EncoderNoise
from pretrain.models.reconstruction import patch_weights, spread_choice
from pretrain.models.teacher import Teacher, Views
from pretrain.objectives.bank import DifficultyBank
from pretrain.objectives.mask_record import MaskRecord

GLANCE, CHOICE, DISTURBED, UNKNOWN, RIVAL = -1, -2, -3, -4, -5
"""Streams of random numbers beside the masks': where a teacher looks, what decoders are given, what
disturbs the encoder, what stands for difficulties that no bank knows yet, what a critic sees."""
FREE = frozenset[Need]({"images", "generator", "salience", "trial", "labels", "masker"})
"""Needs for which no teacher is asked."""


class Given(NamedTuple):
    """What the loader hands over for images."""

    images: Tensor
    """(b, 3, S, S), bytes."""
    indices: Tensor
    place: Tensor | None = None
    """(b, 5): top, left, height and width of each crop in its image, as shares; mirrored or not."""
    labels: Tensor | None = None
    """(b, S, S): the number of what is annotated at each pixel, 0 for nothing."""

    @classmethod
    def of(cls, batch: Batch) -> "Given":
        """Return a batch's parts."""
        if isinstance(batch.data, Tensor):
            return cls(batch.data, batch.indices)
        data = batch.data
        return cls(data["image"], batch.indices, data.get("place"), data.get("labels"))


class MaskPlan(NamedTuple):
    """The masks of a step: all images under the first one, then all under the next."""

    visible: Tensor
    """(masks x b, k), raster order."""
    hidden: Tensor
    """(masks x b, m), raster order: what decoders answer for."""
    weights: Tensor | None
    """(masks x b, m) in the reconstruction loss."""


class Looking(Learner):
    """The part of a learner that provides what masks, weights and choices of patches follow."""

    config: Config
    spec: VitSpec
    strategy: MaskStrategy
    student: MaskedAutoencoder
    teacher: Teacher | None
    generator: torch.Generator
    masks: MaskRecord
    bank: DifficultyBank | None

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

    def plan(self, inp: MaskInput, at: StepInfo) -> MaskPlan:
        """Return every image's masks at this step, and which of the hidden patches count how much."""
        plans: list[tuple[Tensor, Tensor, Tensor | None]] = []
        times = self.config.objective.masks
        for number in range(times):
            turned = replace(inp, turn=number / times)
            mask = self.strategy(turned, self.dice(at, self.config.start.mask_stream))
            self.masks.add(mask, turned)
            visible, hidden = split(mask, self.strategy.count(inp.patches))
            hidden = self.chosen(turned, hidden, at)
            plans.append((visible, hidden, self.weigh(turned, hidden)))
        if times == 1:
            return MaskPlan(*plans[0])
        visible, hidden, weights = zip(*plans, strict=True)
        found = [w for w in weights if w is not None]
        return MaskPlan(torch.cat(visible), torch.cat(hidden), torch.cat(found) if found else None)

    def noise(self, inp: MaskInput, visible: Tensor, at: StepInfo) -> list[EncoderNoise]:
        """Return what disturbs the encoder at this step, if anything does."""
        encoder, times, depth = self.config.encoder, self.config.objective.masks, self.spec.depth
        if not encoder.secondary and not encoder.drop_path:
            return []
        dice, k = self.dice(at, DISTURBED), visible.shape[1]
        keys, chances = inp.uniform(dice, times, inp.patches), inp.uniform(dice, times, depth, 2)
        keys, chances = (x.transpose(0, 1).flatten(0, 1) for x in (keys, chances))
        veiled, keep = None, None
        if encoder.secondary:
            seen = int(k * (1 - encoder.secondary) + 1e-9)
            veiled = hide_largest(keys.gather(1, visible), k - seen)
        if encoder.drop_path:
            stay = 1 - torch.linspace(0, encoder.drop_path, depth, device=keys.device).view(
                1, -1, 1
            )
            keep = (chances < stay).float() / stay
        return [EncoderNoise(veiled, keep)]

    def chosen(self, inp: MaskInput, hidden: Tensor, at: StepInfo) -> Tensor:
        """Return the hidden patches that decoders are given: by default all of them."""
        share, m = self.config.objective.share, hidden.shape[1]
        if share == 1:
            return hidden
        count, dice = max(2, round(m * share)), self.dice(at, CHOICE)
        keys, offset = inp.uniform(dice, inp.patches), inp.uniform(dice, 1)
        if inp.difficulty is not None:
            keys = inp.difficulty
        return hidden.gather(1, spread_choice(keys.gather(1, hidden), offset, count))

    def weigh(self, inp: MaskInput, hidden: Tensor) -> Tensor | None:
        """Return what weighs hidden patches (b, m) in the reconstruction loss."""
        objective = self.config.objective
        values = inp.attention if objective.weights == "attention" else inp.difficulty
        if objective.weights == "none" or values is None:
            return None
        return patch_weights(values.gather(1, hidden), objective.weights_temperature)

    def look(
        self, patches: Tensor, normalised: Tensor, given: Given, at: StepInfo
    ) -> tuple[MaskInput, Views | None]:
        """Ask the teacher for what mask and target need at this moment, and for nothing else."""
        config, needs = self.config.teacher, self.strategy.needs
        mask_input = MaskInput(
            batch=len(patches),
            grid=self.spec.grid,
            device=patches.device,
            epoch_progress=(at.epoch + 1) / at.epochs,
            step_progress=(at.step + 1) / at.steps,
            first=at.first,
            whole=at.batch,
            images=normalised if "images" in needs else None,
            labels=given.labels,
        )
        wanted = needs if not self.strategy.idle(mask_input) else frozenset[Need]()
        if self.config.objective.weights != "none":
            wanted |= {self.config.objective.weights}
        asked = wanted if config.due(at.step) else wanted & FREE
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
        elif "difficulty" in wanted - asked:
            difficulty = self.recall(given, mask_input, at)
        if attention is not None:
            attention = attention.mean(dim=1)
        return replace(
            mask_input,
            difficulty=difficulty,
            attention=attention,
            salience=self.outgoing(patches) if "salience" in asked else None,
            keep=self.wishes(patches) if "masker" in asked else None,
            trial=partial(self.trial, patches, given.images, views) if "trial" in asked else None,
        ), views

    def wishes(self, patches: Tensor) -> Tensor:
        """Return how much a masking network wants each patch (b, n) to be seen, if there is one."""
        raise NotImplementedError

    def recall(self, given: Given, inp: MaskInput, at: StepInfo) -> Tensor | None:
        """Return what the bank remembers (b, n), if there is one; an unknown image's is random."""
        if self.bank is None:
            return None
        assert given.place is not None
        found = self.bank.read(given.indices, given.place)
        chance = inp.uniform(self.dice(at, UNKNOWN), inp.patches)
        # a place that was never hidden is as hard as the others of its image on average
        found = torch.where(found.isnan(), found.nanmean(dim=1, keepdim=True), found)
        return torch.where(found.isnan(), chance, found)

    @torch.no_grad()
    def outgoing(self, patches: Tensor) -> Tensor:
        """Return how much the student's embedded patches attend to each (b, n)."""
        return outgoing(self.student.encoder.embed(patches)[:, self.spec.class_tokens :])

    @torch.no_grad()
    def trial(self, patches: Tensor, images: Tensor, views: Views | None, mask: Tensor) -> Tensor:
        """Return the student's mean loss (b,) under masks (b, n)."""
        visible, hidden = split(mask, self.strategy.count(mask.shape[1]))
        prediction = self.student(patches, visible, hidden).prediction
        return self.patch_losses(prediction, patches, images, hidden, views).mean(dim=1)
