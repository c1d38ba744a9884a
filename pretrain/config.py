"""The schema of a pretraining config: base.yaml spells out every default, a recipe what differs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimbench.system.config import from_mapping, load_yaml, merge, parse_overrides
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.files import value_digest
from mimbench.task import Machine
from mimbench.training.learner import LoopConfig
from pretrain import masks
from pretrain.models.autoencoder import DecoderConfig
from pretrain.models.options import MaskedEncoderConfig, ObjectiveConfig, TeacherConfig
from pretrain.sections import (
    TrainingConfig,
    drop_unused,
    moving_values,
)
from pretrain.sources.crops import DataConfig

CONFIGS = Path(__file__).parent / "configs"
BASE = CONFIGS / "base.yaml"

LATER: Mapping[str, Mapping[str, Any]] = {
    "encoder": {"class_tokens": 1, "positions": "fixed", "drop_path": 0.0, "secondary": 0.0},
    "decoder": {"kind": "self", "features": None, "self_attention": False},
    "objective": {
        "predictor": "own",
        "exit": None,
        "share": 1.0,
        "masks": 1,
        "weights": "none",
        "weights_temperature": 1.0,
    },
    "teacher": {"look": "whole", "bank": False, "bank_rate": 0.5},
    "data": {"annotations": None},
    "start": {"init": "stream", "mask_stream": 1},
}
"""Options that came after runs had been made, with the values that mean what was before them."""


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
    """What a run begins with: weights, and the random numbers that stand in for them."""

    weights: Path | None = None
    """A checkpoint of ours, of HPM or MAE, or any encoder that mimbench reads."""
    resume: bool = False
    """Also take up the schedule after the epochs that the file says are done."""
    init: Literal["stream", "named"] = "stream"
    """Random values: all from one stream, or each tensor's from the seed and its name, so that runs
    of one seed start alike whatever else they train."""
    mask_stream: int = 1
    """Which stream of random numbers masks come from; another gives the same run other masks."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run."""

    encoder: MaskedEncoderConfig = field(default_factory=MaskedEncoderConfig)
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
        if getattr(strategy, "counts", "fixed") != "fixed":
            # asked now, and not after the data was opened
            strategy.count(self.data.image_size // self.encoder.patch)
        if "difficulty" in strategy.needs and self.objective.predict_loss == "none":
            raise ValueError(
                f"masks '{self.mask['name']}' follow the predicted loss, but objective.predict_loss "
                "is none; train the predictor, or take mask.name=random"
            )
        if self.teacher.bank and self.objective.predict_loss == "none":
            raise ValueError(
                "teacher.bank remembers predicted losses, but objective.predict_loss is none"
            )
        if self.objective.weights == "difficulty" and self.objective.predict_loss == "none":
            raise ValueError("weights by difficulty need objective.predict_loss, which is none")
        o = self.objective
        plain = o.share == 1 and o.predictor == "own" and o.weights == "none" and o.masks == 1
        plain &= self.decoder.kind == "self" and not self.teacher.bank
        e = self.encoder
        plain &= e.positions == "fixed" and not e.drop_path and not e.secondary
        if strategy.needs & {"generator", "masker"} and not plain:
            raise ValueError(
                "learned masks go with objective.share=1, masks=1, predictor=own and weights=none, "
                "decoder.kind=self, without a bank, and with an encoder's usual positions, "
                "drop_path=0 and secondary=0 only"
            )
        if self.decoder.kind == "cross" and self.teacher.tokens != 1:
            raise ValueError(
                "a cross decoder's teacher looks at patches of its own grid: set teacher.tokens=1; "
                "teacher.look=quarter saves as much"
            )
        leave = self.leave()
        if leave is not None and not 1 <= leave <= self.decoder.depth:
            raise ValueError(
                f"objective.exit is {leave}, but the decoder has {self.decoder.depth} blocks"
            )
        depth = self.encoder.spec(self.data).depth
        wrong = [i for i in self.decoder.features or () if not 0 <= i <= depth]
        if wrong:
            raise ValueError(
                f"decoder.features names {wrong}, but the encoder has its input, 0, and {depth} blocks"
            )
        self.loop()

    @property
    def labels(self) -> Literal["boxes", "segments"] | None:
        """Which annotations the masks follow, if they do."""
        if "labels" not in masks.build(self.mask).needs:
            return None
        return "boxes" if self.mask["name"] == "boxes" else "segments"

    def leave(self) -> int | None:
        """Return the decoder's block after which a shared predictor reads, None for its own."""
        if self.objective.predictor == "own":
            return None
        return self.decoder.depth if self.objective.exit is None else self.objective.exit

    def loop(self) -> LoopConfig:
        """Return the training loop's configuration."""
        return self.training.loop(clip_grad=self.optimizer.clip_grad, best="reconstruction")

    def digest(self) -> str:
        """Return a digest of all that may move the weights."""
        value = moving_values(self)
        drop_unused(value, LATER)
        if "annotations" in value["data"]:
            # where they lie moves nothing
            value["data"]["annotations"] = True
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
    for layer in (load_yaml(path), parse_overrides(overrides, layered=True)):
        mapping = lay_over(mapping, layer)
    return from_mapping(Config, mapping, path.name)


def lay_over(below: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """Merge; another mask's name drops the fields that belonged to the one below."""
    mask, known = layer.get("mask"), below["mask"]
    renamed = isinstance(mask, Mapping) and mask.get("name", known["name"]) != known["name"]
    if renamed:
        below = {**below, "mask": {k: v for k, v in known.items() if k == "ratio"}}
    return merge(below, layer)
