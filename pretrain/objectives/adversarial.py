"""AutoMAE's step: attention -> critic's step -> generator, student -> losses that both minimise."""

import logging
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mimbench.checkpoints.files import read_vit
from mimbench.system.errors import UserError
from mimbench.system.runtime import all_reduce_mean
from mimbench.training.batches import Batch
from mimbench.training.learner import StepInfo
from mimbench.training.optim import set_lr
from mimbench.vit.backbone import Backbone, build_backbone
from pretrain.checkpoints.stored import read_model
from pretrain.config import Config
from pretrain.masks import MaskInput
from pretrain.masks.adversarial import Strategy
from pretrain.models.attention import backbone_attention
from pretrain.models.generator import (
    AdversarialAutoencoder,
    AdversarialOutputs,
    Discriminator,
    rectangles,
    shown,
)
from pretrain.objectives.learner import Pretraining
from pretrain.objectives.looking import RIVAL, Given

logger = logging.getLogger(__name__)


class AdversarialPretraining(Pretraining):
    """Masked reconstruction whose masks are learned beside it."""

    strategy: Strategy
    student: AdversarialAutoencoder

    def __init__(self, config: Config, device: torch.device, out: Path) -> None:
        super().__init__(config, device, out)
        self.discriminator = Discriminator(self.spec.grid).to(device)
        self.rival_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), betas=config.optimizer.betas
        )

    def networks(self, outputs: int | None) -> AdversarialAutoencoder:
        """Return the student with its generator; read the scorer."""
        config, strategy = self.config, self.strategy
        self.scorer: Backbone | None = None
        self.scorer_digest, heads = "", self.spec.num_heads
        if strategy.scorer is not None:
            weights = read_vit(strategy.scorer, who="the scorer of masks")
            self.scorer = build_backbone(weights).to(self.device)
            self.scorer_digest, heads = weights.digest, weights.spec.num_heads
        student = AdversarialAutoencoder(
            self.spec,
            config.decoder,
            strategy,
            heads=heads,
            outputs=outputs,
            predictor=config.objective.predict_loss != "none",
        )
        if strategy.generator_from is not None:
            take_generator(student, strategy.generator_from)
        return student

    def asks_teacher(self) -> bool:
        """Tell whether the moving average takes the scorer's place."""
        return self.strategy.scorer is None

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return the step's losses after the critic has had its turn."""
        given = Given.of(batch)
        normalised, patches = self.prepare(given.images)
        attention = self.salience(given.images, patches)
        mask_input, views = self.look(patches, normalised, given, at)
        figures: dict[str, Tensor] = {}
        if self.strategy.weight > 0:
            figures = self.train_discriminator(attention, mask_input, at)
        self.dice(at, self.config.start.mask_stream)
        noise, gumbel = self.strategy.noise(mask_input, self.generator)
        found: AdversarialOutputs = model(patches, attention, gumbel, noise)
        self.masks.add(found.draw.mask, mask_input)
        losses = self.patch_losses(
            found.outputs.prediction, patches, given.images, found.hidden, views
        )
        figures |= self.figures(found.outputs, losses)
        if self.strategy.weight > 0:
            judged = self.judge(found.draw.sample)
            figures["adversarial"] = judged.detach()
            figures["loss"] = figures["loss"] + self.strategy.weight * judged
        return figures

    @torch.no_grad()
    def salience(self, images: Tensor, patches: Tensor) -> Tensor:
        """Return the scorer's attention (b, heads, n), in full precision."""
        with torch.autocast(patches.device.type, enabled=False):
            if self.scorer is None:
                assert self.teacher is not None
                return self.teacher.attend(patches)
            return backbone_attention(self.scorer, images.float() / 255, grid=self.spec.grid)

    def judge(self, sample: Tensor) -> Tensor:
        """Return how far the critic, left as it is, finds samples from rectangles."""
        self.discriminator.requires_grad_(requires_grad=False)
        with torch.autocast(sample.device.type, enabled=False):
            return (self.discriminator(shown(sample, self.strategy.maps)) - 1).square().mean()

    def train_discriminator(
        self, attention: Tensor, mask_input: MaskInput, at: StepInfo
    ) -> dict[str, Tensor]:
        """Let the critic learn from this micro-batch; after the last one it takes its step."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        share = at.batch // world
        if at.first % share == 0:
            self.rival_optimizer.zero_grad(set_to_none=True)
        self.discriminator.requires_grad_(requires_grad=True)
        dice = self.dice(at, RIVAL)
        real = rectangles(mask_input, dice)
        noise, gumbel = self.strategy.noise(mask_input, dice)
        with torch.no_grad():
            student = self.student
            chances = student.generator(attention, student.spec.grid)
            fake = self.strategy.draw(chances, gumbel, noise).sample
        maps = self.strategy.maps
        with torch.autocast(attention.device.type, enabled=False):
            real_loss = (self.discriminator(shown(real, maps)) - 1).square().mean()
            fake_loss = self.discriminator(shown(fake, maps)).square().mean()
            ((real_loss + fake_loss) * (len(attention) / share)).backward()
        if at.first % share + len(attention) == share:
            self.step_discriminator(at)
        return {"critic_rectangles": real_loss.detach(), "critic_samples": fake_loss.detach()}

    def step_discriminator(self, at: StepInfo) -> None:
        """Take the critic's step on the gradients of all processes."""
        for parameter in self.discriminator.parameters():
            assert parameter.grad is not None
            parameter.grad = all_reduce_mean(parameter.grad)
        set_lr(self.rival_optimizer, self.rate(at))
        self.rival_optimizer.step()
        self.discriminator.power_step()

    def state(self) -> dict[str, Any]:
        """Return the teacher, the critic and its optimizer."""
        return {
            **super().state(),
            "rival": self.discriminator.state_dict(),
            "rival_optimizer": self.rival_optimizer.state_dict(),
            "scorer": self.scorer_digest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up; the scorer must still be the same network."""
        super().restore(state)
        if state["scorer"] != self.scorer_digest:
            raise UserError(
                f"mask.scorer {self.strategy.scorer} is not the network with which this run began; "
                "give it back the file it had, or start afresh with --fresh"
            )
        self.discriminator.load_state_dict(state["rival"])
        self.rival_optimizer.load_state_dict(state["rival_optimizer"])


def take_generator(student: AdversarialAutoencoder, path: Path) -> None:
    """Fill the generator from an earlier run's."""
    stored = read_model(path).student
    prefix = "generator."
    own = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
    if not own:
        raise UserError(f"mask.generator_from {path} holds no mask generator")
    try:
        student.generator.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"the generator in {path} does not fit: {error}") from error
    logger.info("%s fills the mask generator", path)
