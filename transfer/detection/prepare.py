"""A run before it starts: data checked, weights converted, detector built."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import nn

from mimbench.model import Weights
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.optim import BatchPlan, plan_batch
from transfer.detection import data, loading
from transfer.detection.detector import DetectorConfig, ResolvedRecipe

logger = logging.getLogger(__name__)


USERS = {"protocol": "user module"}
"""A module of the user's own has no layer decay, no dropped paths, nothing that is a ViT's."""


@dataclass(frozen=True, kw_only=True)
class DetectorSetup:
    """What a kind of detector makes of weights and a recipe."""

    plan: ResolvedRecipe
    report: str
    """The line that says what was loaded."""
    model: nn.Module
    optimizer: DictConfig
    """Still without the model."""
    ran: Mapping[str, str] = field(default_factory=dict)
    """Where it is not what the protocol says: a column of its own."""


Designer = Callable[..., DetectorSetup]
"""Called with weights, configuration and `classes`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run is made of, with nothing built twice."""

    config: DetectorConfig
    design: DetectorSetup
    train: data.Split
    val: data.Split
    names: dict[str, str]
    sets: DictConfig
    ranks: Ranks
    batch: BatchPlan

    @property
    def plan(self) -> ResolvedRecipe:
        """The recipe with nothing left open."""
        return self.design.plan

    @property
    def model(self) -> nn.Module:
        """The detector."""
        return self.design.model

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device


def prepare(weights: Weights, config: DetectorConfig, ranks: Ranks, designer: Designer) -> Job:
    """Check the data, convert the weights and build the detector."""
    device = pick_device(config.machine.device, ranks.local)
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision fp16 needs a CUDA GPU, this is {device}; set precision: bf16 or fp32"
        )
    train = data.inspect(config.data / config.train_json, config.data / config.train_images)
    val = data.inspect(config.data / config.val_json, config.data / config.val_images)
    data.check_same_classes(train, val)
    design = designer(weights, config, classes=len(train.classes))
    design.model.to(device)
    if ranks.main:
        for line in (train.summary, val.summary, design.report, *design.plan.notes):
            logger.info("%s", line)
    names = {"train": data.register(train), "val": data.register(val)}
    return Job(
        config=config,
        design=design,
        train=train,
        val=val,
        names=names,
        sets=loading.build_data_config(config, names, bitmask=train.codes > 0),
        ranks=ranks,
        batch=plan_batch(config.batch, world=ranks.world, at_most=config.most_at_once),
    )
