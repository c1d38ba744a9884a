"""The schema of a pretraining config: base.yaml spells out every default, a recipe what differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mimbench.system.config import from_mapping, load_yaml, merge, parse_overrides
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.files import value_digest
from mimbench.task import Machine
from mimbench.training.learner import LoopConfig
from pretrain import masks
from pretrain.models.autoencoder import DecoderConfig
from pretrain.models.reconstruction import LossPrediction, TargetName
from pretrain.models.teacher import TeacherConfig
from pretrain.sections import EncoderConfig, TrainingConfig, moving_values
from pretrain.sources.crops import DataConfig

CONFIGS = Path(__file__).parent / "configs"
BASE = CONFIGS / "base.yaml"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted for hidden patches."""

    target: TargetName = "normalised"
    """Pixels, pixels normalised within each patch, or the features of a network."""
    features_from: Path | None = None
    """The checkpoint of the network for the targets `dino` and `clip`."""
    predict_loss: LossPrediction = "relative"
    """How the loss predictor is trained; `none` leaves it out, which is MAE."""
    epsilon: float = 0.0
    """Added inside the relative loss's logarithm; the released code has 1e-6."""
    loss_weight: float = 1.0
    """Weight of the predictor's loss beside the reconstruction's."""

    def __post_init__(self) -> None:
        if self.target in {"dino", "clip"} and self.features_from is None:
            raise ValueError(f"the target '{self.target}' needs features_from, a checkpoint")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, half a cosine, per step."""

    base_lr: float = 1.5e-4
    """Learning rate for a batch of 256; it scales with the batch."""
    min_lr: float = 0.0
    warmup_epochs: float = 40
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    clip_grad: float | None = 5.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights to begin with instead of random ones."""

    weights: Path | None = None
    """A checkpoint of ours, of HPM or MAE, or any encoder that mimbench reads."""
    resume: bool = False
    """Also take up the schedule after the epochs that the file says are done."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mask: Mapping[str, Any] = field(default_factory=lambda: {"name": "hard"})
    """`name` of a file in pretrain/masks, and its fields."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    start: Start = field(default_factory=Start)
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        strategy = masks.build(self.mask)
        if "difficulty" in strategy.needs and self.objective.predict_loss == "none":
            raise ValueError(
                f"masks '{self.mask['name']}' follow the predicted loss, but objective.predict_loss "
                "is none; train the predictor, or take mask.name=random"
            )
        self.encoder.spec(self.data)
        self.loop()

    def loop(self) -> LoopConfig:
        """Return the training loop's configuration."""
        return self.training.loop(clip_grad=self.optimizer.clip_grad, best="reconstruction")

    def digest(self) -> str:
        """Return a digest of all that may move the weights."""
        value = moving_values(self)
        value["start"]["weights"] = value["start"]["weights"] is not None
        # where AutoMAE's networks lie; the training state knows which they were
        for name in {"scorer", "generator_from"} & value["mask"].keys():
            value["mask"][name] = value["mask"][name] is not None
        return value_digest(value)


def read_config(config: str, overrides: list[str]) -> Config:
    """Return the run that a recipe and the command line describe, laid over base.yaml.

    Args:
        config: A YAML file, or the name of one in pretrain/configs.
        overrides: Items such as `mask.name=random`, as in `--set`.
    """
    path = Path(config)
    if not path.is_file():
        named = CONFIGS / f"{path.stem if path.parent == Path() else config}.yaml"
        if not named.is_file():
            known = sorted(p.stem for p in CONFIGS.glob("*.yaml") if p != BASE)
            raise UserError(f"no config '{config}'{did_you_mean(path.stem, known)}")
        path = named
    # the defaults say how a nested override is meant, so they lie below it
    mapping = load_yaml(BASE)
    for layer in (load_yaml(path), parse_overrides(overrides)):
        mapping = lay_over(mapping, layer)
    return from_mapping(Config, mapping, path.name)


def lay_over(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Merge; another mask's name drops the fields that belonged to the one below."""
    mask, known = layer.get("mask"), below["mask"]
    renamed = isinstance(mask, Mapping) and mask.get("name", known["name"]) != known["name"]
    if renamed:
        below = {**below, "mask": {k: v for k, v in known.items() if k == "ratio"}}
    return merge(below, layer)
