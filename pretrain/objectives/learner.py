"""A pretraining step: crop -> (teacher) -> mask -> student -> reconstruction and predicted loss."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mimbench.system.files import write_json
from mimbench.training.batches import Batch
from mimbench.training.learner import LAST, StepInfo
from mimbench.training.optim import Schedule, scaled_lr
from mimbench.vit.normalise import Normalisation
from pretrain import masks
from pretrain.checkpoints.handover import write_export
from pretrain.config import Config
from pretrain.models.autoencoder import MaskedAutoencoder, Outputs, to_patches
from pretrain.models.cross_autoencoder import build_autoencoder
from pretrain.models.encoder import take
from pretrain.models.features import FeatureNetwork
from pretrain.models.image_targets import (
    histogram_width,
    low_frequencies,
    oriented_gradients,
)
from pretrain.models.initial import by_name
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
from pretrain.models.teacher import Views, build_teacher
from pretrain.objectives.bank import DifficultyBank
from pretrain.objectives.looking import Given, Looking
from pretrain.objectives.mask_record import MaskRecord


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: vectors and biases without weight decay, everything else with it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
    ]


def output_width(config: Config, features: FeatureNetwork | None) -> int | None:
    """Return the width of the reconstruction head, None for a patch's pixels."""
    target = config.objective.target
    if target in PIXEL_TARGETS or target.startswith("low"):
        return None
    if target == "hog":
        return histogram_width(config.encoder.patch)
    if features is not None:
        return features.width
    return config.encoder.spec(config.data).embed_dim


class Pretraining(Looking):
    """Masked image modelling by reconstruction: MAE, HPM and everything between and beside them."""

    def __init__(self, config: Config, device: torch.device, out: Path) -> None:
        self.config, self.device, self.out = config, device, out
        self.spec = config.encoder.spec(config.data)
        self.strategy = masks.build(config.mask)
        source = config.objective.features_from
        self.features = FeatureNetwork(source, self.spec.grid).to(device) if source else None
        student = self.networks(output_width(config, self.features))
        encoder = config.encoder
        student.extend(secondary=encoder.secondary > 0, positions=encoder.positions == "learned")
        if config.start.init == "named":
            # before they move: a device has generators of its own
            student.initialise(by_name(config.training.seed))
        self.student = student.to(device)
        self.model = self.student
        if config.machine.recompute:
            self.student.recompute()
        averaged = self.asks_teacher() or config.objective.target == "ema" or config.teacher.keep
        self.teacher = build_teacher(self.student) if averaged else None
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
        self.masks = MaskRecord(self.spec.grid, device)
        self.bank: DifficultyBank | None = None
        self.normalise = Normalisation(self.spec.mean, self.spec.std).to(device)

    def networks(self, outputs: int | None) -> MaskedAutoencoder:
        """Return what is trained."""
        return build_autoencoder(
            self.spec,
            self.config.decoder,
            outputs=outputs,
            predictor=self.config.objective.predict_loss != "none",
            leave=self.config.leave(),
        )

    def open_bank(self, images: int) -> None:
        """Make room for what is predicted about so many images, if the run remembers that."""
        config = self.config.teacher
        if config.bank:
            self.bank = DifficultyBank(self.out, images, self.spec.grid, config.bank_rate)

    def asks_teacher(self) -> bool:
        """Tell whether masks or weights follow what the teacher sees."""
        if not self.config.teacher.every:
            return False
        weighed = self.config.objective.weights != "none"
        return weighed or bool(self.strategy.needs & {"difficulty", "attention"})

    def rate(self, at: StepInfo) -> float:
        """Return the learning rate."""
        return self.schedule(at.fraction)

    def loss(self, model: nn.Module, batch: Batch, at: StepInfo) -> dict[str, Tensor]:
        """Return the step's losses, and how well predicted losses order the true ones."""
        given = Given.of(batch)
        normalised, patches = self.prepare(given.images)
        mask_input, views = self.look(patches, normalised, given, at)
        visible, hidden, weights = self.plan(mask_input, at)
        noise = self.noise(mask_input, visible, at)
        images = given.images
        times = self.config.objective.masks
        if times > 1:
            patches, images = patches.repeat(times, 1, 1), images.repeat(times, 1, 1, 1)
            if views is not None:
                views = views._replace(features=views.features.repeat(times, 1, 1))
        outputs: Outputs = model(patches, visible, hidden, *noise)
        if self.bank is not None:
            assert given.place is not None
            assert outputs.difficulty is not None
            self.bank.note(given.indices, given.place, hidden, outputs.difficulty)
        losses = self.patch_losses(outputs.prediction, patches, images, hidden, views)
        return self.figures(outputs, losses, weights)

    def prepare(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (b, 3, H, W), normalised, and their patches."""
        normalised = self.normalise.of_bytes(images)
        return normalised, to_patches(normalised, self.spec.patch_size)

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
        if target == "hog":
            wanted = oriented_gradients(self.normalise.of_bytes(images), self.spec.patch_size)
            return pixel_loss(prediction, take(wanted, hidden))
        if target.startswith("low"):
            low = self.normalise(low_frequencies(images.float() / 255))
            wanted = take(to_patches(low, self.spec.patch_size), hidden)
            return pixel_loss(
                prediction, normalise_patches(wanted) if target == "low_normalised" else wanted
            )
        if target == "ema":
            assert views is not None
            return feature_loss(prediction, take(views.features, hidden))
        assert self.features is not None
        return feature_loss(prediction, take(self.features(images / 255), hidden))

    def figures(
        self, outputs: Outputs, losses: Tensor, weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the total loss and what a person wants to see beside it."""
        objective, plain = self.config.objective, losses.mean()
        reconstruction = plain if weights is None else (losses * weights).mean()
        if outputs.difficulty is None:
            return {"loss": reconstruction, "reconstruction": plain.detach()}
        signs = pair_signs(losses)
        if objective.predict_loss == "relative":
            judged = relative_loss(outputs.difficulty, signs, epsilon=objective.epsilon)
        else:
            judged = absolute_loss(outputs.difficulty, losses)
        return {
            "loss": reconstruction + objective.loss_weight * judged,
            "reconstruction": plain.detach(),
            "loss_prediction": judged.detach(),
            "rank_correlation": rank_correlation(outputs.difficulty, signs),
        }

    def begin_epoch(self, at: StepInfo) -> None:
        """Begin a new record of masks, unless the run goes on in the middle of an epoch."""
        if at.step % at.steps_per_epoch == 0:
            self.masks.reset()

    def after_update(self, at: StepInfo) -> None:
        """Let the teacher follow, and close the step's records, once for each optimizer step."""
        self.masks.settle()
        if self.bank is not None:
            self.bank.settle(self.device)
        if self.teacher is not None:
            # `at` already counts the step just taken: its epoch is that of the step before
            epoch = (at.step - 1) // at.steps_per_epoch
            self.teacher.follow(self.config.teacher.decay(epoch))

    def saved(self, checkpoint: Path, at: StepInfo) -> None:
        """Write what other programs read: the encoders, and the whole model."""
        out = self.out if checkpoint.name == LAST else self.out / checkpoint.stem
        write_export(out, self.config, self.student, self.teacher, at, self.further_tensors())
        write_json(out / "masks.json", {"step": at.step, **self.masks.summary()})

    def further_tensors(self) -> dict[str, Tensor]:
        """Return what exports hold beside the student's own tensors."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the teacher, the bank, and what the epoch's masks were like."""
        own: dict[str, Any] = {} if self.teacher is None else {"teacher": self.teacher.state_dict()}
        if self.bank is not None:
            own["bank"] = self.bank.state()
        return {**own, "masks": self.masks.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the teacher, the bank and the record of masks up."""
        # states from before there was a record have none
        if "masks" in state:
            self.masks.restore(state["masks"])
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        if self.bank is not None:
            self.bank.restore(state["bank"])
