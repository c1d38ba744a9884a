"""A run before it starts: data checked, weights converted, detector built."""

import logging
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import nn

from mimbench.checkpoints.vitdet import Converted
from mimbench.system.errors import UserError
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.optim import BatchPlan, plan_batch
from mimbench.vit.weights import VitSpec, VitWeights
from transfer.detection import data, recipe
from transfer.detection.convert import convert, target_patch
from transfer.detection.protocol import Config, Plan, plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run is made of, with nothing built twice."""

    config: Config
    spec: VitSpec
    converted: Converted
    plan: Plan
    train: data.Split
    val: data.Split
    names: dict[str, str]
    sets: DictConfig
    model: nn.Module
    ranks: Ranks
    batch: BatchPlan

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device


def prepare(weights: VitWeights, config: Config, ranks: Ranks) -> Job:
    """Check the data, convert the weights and build the detector."""
    device = pick_device(config.machine.device, ranks.local)
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision fp16 needs a CUDA GPU, this is {device}; set precision: bf16 or fp32"
        )
    train = data.inspect(config.data / config.train_json, config.data / config.train_images)
    val = data.inspect(config.data / config.val_json, config.data / config.val_images)
    data.check_same_classes(train, val)
    patch = target_patch(weights.spec, config.patch_size)
    side = recipe.side_of(config, patch)
    converted = convert(weights, patch_size=config.patch_size, side=side)
    planned = plan(config, weights.spec)
    if ranks.main:
        for line in (train.summary, val.summary, converted.report, *planned.notes):
            logger.info("%s", line)
    model_config = recipe.build_model_config(
        config, planned, weights.spec, converted, classes=len(train.classes)
    )
    model = recipe.build_model(model_config, config, seed=config.seed)
    recipe.fill(model, converted)
    names = {"train": data.register(train), "val": data.register(val)}
    return Job(
        config=config,
        spec=weights.spec,
        converted=converted,
        plan=planned,
        train=train,
        val=val,
        names=names,
        sets=recipe.build_data_config(config, names, bitmask=train.codes > 0),
        model=model.to(device),
        ranks=ranks,
        batch=plan_batch(config.batch, world=ranks.world, at_most=config.machine.max_batch),
    )
