"""A pretraining step: crop -> (teacher) -> mask -> student -> reconstruction and predicted loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.system.seeds import derive_seed
from mimbench.training.batches import Batch
from mimbench.training.learner import LAST, Learner, StepInfo
from mimbench.training.optim import Schedule, scaled_lr
from mimbench.vit.normalise import Normalisation
from pretrain import masks
from pretrain.checkpoints.export import write_export
from pretrain.config import Config
from pretrain.models.autoencoder import MaskedAutoencoder, Outputs, split, take, to_patches
from pretrain.models.features import FeatureNetwork
from pretrain.models.reconstruction import (
    PIXEL_TARGETS,
    absolute_loss,
    feature_loss,
    normalise_patches,
    pair_signs,
    pixel_loss,
    rank_correlation,
    relative_loss,
)
from pretrain.models.teacher import Teacher, Views


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: vectors and biases without weight decay, everything else with it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]


def output_width(config: Config, features: FeatureNetwork | None) -> int | None:
    """Return the width of the reconstruction head, None for a patch's pixels."""
    if config.objective.target in PIXEL_TARGETS:
        return None
    if features is not None:
        return features.width
    return config.encoder.spec(config.data).embed_dim


class Pretraining(Learner):
    """Masked image modelling by reconstruction: MAE, HPM and everything between and beside them."""

    def __init__(self, config: Config, device: torch.device, out: Path) -> None:
        self.config, self.device, self.out = config, device, out
        self.spec = config.encoder.spec(config.data)
        self.strategy = masks.build(config.mask)
        source = config.objective.features_from
        self.features = FeatureNetwork(source, self.spec.grid).to(device) if source else None
        self.student = self.networks(output_width(config, self.features)).to(device)
        self.model = self.student
        if config.machine.recompute:
            self.student.recompute()
        averaged = self.asks_teacher() or config.objective.target == "ema" or config.teacher.keep
        self.teacher = Teacher(self.student) if averaged else None
        if self.teacher is not None and config.machine.compile:
            self.teacher.compile()
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.optimizer.weight_decay),
            betas=config.optimizer.betas,
            fused=True,
        )
        o, t = config.optimizer, config.training
        self.schedule = Schedule(
            peak=scaled_lr(o.base_lr, t.batch),
            epochs=t.epochs,
            warmup=o.warmup_epochs,
            floor=o.min_lr,
        )
        # on the host: a seed gives the same masks on every device
        self.generator = torch.Generator()
        self.normalise = Normalisation(self.spec.mean, self.spec.std).to(device)

    def networks(self, outputs: int | None) -> MaskedAutoencoder:
        """Return what is trained."""
        return MaskedAutoencoder(
            self.spec,
            self.config.decoder,
            outputs=outputs,
            predictor=self.config.objective.predict_loss != "none",
        )

    def asks_teacher(self) -> bool:
        """Tell whether the masks follow what the teacher sees."""
        return bool(self.strategy.needs & {"difficulty", "attention"})

    def rate(self, at: StepInfo) -> float:
        """Return the learning rate."""
        return self.schedule(at.fraction)

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return the step's losses, and how well predicted losses order the true ones."""
        normalised, patches = self.prepare(batch)
        mask_input, views = self.look(patches, normalised, at)
        # the same numbers on every process and micro-step: each takes its own rows
        self.generator.manual_seed(derive_seed(self.config.training.seed, at.step, 1))
        mask = self.strategy(mask_input, self.generator)
        visible, hidden = split(mask, self.strategy.count(mask_input.patches))
        outputs: Outputs = model(patches, visible, hidden)
        losses = self.patch_losses(outputs.prediction, patches, batch.data, hidden, views)
        return self.figures(outputs, losses)

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the images (b, 3, H, W), normalised, and their patches."""
        normalised = self.normalise.of_bytes(batch.data)
        return normalised, to_patches(normalised, self.spec.patch_size)

    def look(
        self, patches: Tensor, normalised: Tensor, at: StepInfo
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
        asked = at.step % config.every == 0 and not self.strategy.idle(mask_input)
        judged, attends = asked and "difficulty" in needs, asked and "attention" in needs
        whole = judged and config.tokens == 1
        views, difficulty, attention = None, None, None
        if self.teacher is not None and (whole or self.config.objective.target == "ema"):
            views = self.teacher(patches, difficulty=whole, attention=attends)
            difficulty, attention = views.difficulty, views.attention
        elif self.teacher is not None and attends:
            attention = self.teacher.attend(patches)
        if self.teacher is not None and judged and not whole:
            difficulty = self.teacher.glance(patches, config.tokens)
        if attention is not None:
            attention = attention.mean(dim=1)
        return replace(mask_input, difficulty=difficulty, attention=attention), views

    def patch_losses(
        self,
        prediction: Tensor,
        patches: Tensor,
        images: Tensor,
        hidden: Tensor,
        views: Views | None,
    ) -> Tensor:
        """Return the reconstruction loss of each hidden patch (b, m)."""
        target = self.config.objective.target
        if target in PIXEL_TARGETS:
            wanted = take(patches, hidden)
            return pixel_loss(
                prediction, normalise_patches(wanted) if target == "normalised" else wanted
            )
        if target == "ema":
            assert views is not None
            return feature_loss(prediction, take(views.features, hidden))
        assert self.features is not None
        return feature_loss(prediction, take(self.features(images / 255), hidden))

    def figures(self, outputs: Outputs, losses: Tensor) -> dict[str, Tensor]:
        """Return the total loss and what a person wants to see beside it."""
        objective, reconstruction = self.config.objective, losses.mean()
        if outputs.difficulty is None:
            return {"loss": reconstruction, "reconstruction": reconstruction.detach()}
        signs = pair_signs(losses)
        if objective.predict_loss == "relative":
            judged = relative_loss(outputs.difficulty, signs, epsilon=objective.epsilon)
        else:
            judged = absolute_loss(outputs.difficulty, losses)
        return {
            "loss": reconstruction + objective.loss_weight * judged,
            "reconstruction": reconstruction.detach(),
            "loss_prediction": judged.detach(),
            "rank_correlation": rank_correlation(outputs.difficulty, signs),
        }

    def after_update(self, at: StepInfo) -> None:
        """Let the teacher follow, once for each optimizer step."""
        if self.teacher is not None:
            # `at` already counts the step just taken: its epoch is that of the step before
            epoch = (at.step - 1) // at.steps_per_epoch
            self.teacher.follow(self.config.teacher.decay(epoch))

    def saved(self, checkpoint: Path, at: StepInfo) -> None:
        """Write what other programs read: the encoders, and the whole model."""
        out = self.out if checkpoint.name == LAST else self.out / checkpoint.stem
        write_export(out, self.config, self.student, self.teacher, at)

    def state(self) -> dict[str, Any]:
        """Return the teacher."""
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the teacher up."""
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
