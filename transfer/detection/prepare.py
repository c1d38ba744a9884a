"""A run before it starts: data checked, weights converted, detector built, folder claimed."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import write_json
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.optim import BatchPlan, plan_batch
from mimbench.vit.weights import VitSpec, VitWeights
from transfer.detection import data, recipe
from transfer.detection.convert import Converted, convert, target_patch
from transfer.detection.protocol import Config, Plan, plan

logger = logging.getLogger(__name__)

RECORD = "run.json"
FREE = ("data", "machine")
"""Fields that may change between the parts of one run."""


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


def claim(out: Path, job: Job, weights: VitWeights, *, version: int) -> None:
    """Write down whose folder this is, or refuse a folder that holds another run."""
    mine = {
        "version": version,
        "weights": weights.digest,
        "name": weights.name,
        "config": to_mapping(job.config),
        "tensors": job.converted.report,
    }
    if (out / RECORD).exists():
        theirs = read_record(out)
        differing = [key for key in ("version", "weights") if theirs[key] != mine[key]]
        differing += [
            key
            for key, value in mine["config"].items()
            if key not in FREE and theirs["config"].get(key) != value
        ]
        if differing:
            raise UserError(
                f"{out} holds a run that differs in {', '.join(differing)}; "
                "choose another folder or delete this one"
            )
    comm.synchronize()
    if job.ranks.main:
        write_json(out / RECORD, mine)
    comm.synchronize()


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `claim` wrote."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not the folder of a detection run: {RECORD} cannot be read ({error})"
        ) from error
