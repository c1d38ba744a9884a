"""What is decided before the first step: device, batch, the whole configuration, the empty model."""

from dataclasses import dataclass

import torch
from mmengine.config import Config
from torch import nn

from mimbench.model import Spec
from mimbench.system.errors import UserError
from mimbench.system.generators import seed_everything
from mimbench.system.runtime import Ranks, pick_device
from mimbench.training.optim import BatchPlan, plan_batch
from transfer.segmentation import decay, order, precision  # noqa: F401
from transfer.segmentation.data import DataSource
from transfer.segmentation.framework import MODELS
from transfer.segmentation.loop import synchronises
from transfer.segmentation.protocol import SegmentationConfig
from transfer.segmentation.recipe import ModelRecipe, full_config


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that is decided before the first step."""

    config: SegmentationConfig
    model_recipe: ModelRecipe
    spec: Spec
    source: DataSource
    plan: BatchPlan
    cfg: Config
    device: torch.device
    ranks: Ranks

    @property
    def synchronised(self) -> bool:
        """Batch norm sees the images of all processes."""
        return synchronises(self.device, self.ranks.world)

    @property
    def normalised(self) -> int:
        """Images over which batch norm takes its statistics."""
        return self.plan.per_process * (self.ranks.world if self.synchronised else 1)

    @property
    def batch_norm(self) -> str:
        """Say over which images batch norm takes its statistics, and what that means."""
        images = self.normalised
        kind = f"synchronised over {self.ranks.world} processes" if self.synchronised else "local"
        if images == self.config.batch:
            return f"{kind}: {images} images, the whole effective batch"
        return (
            f"{kind}: {images} of the effective batch's {self.config.batch} images; the published "
            "runs normalise over all of them, so a small loss is possible"
        )


def set_up(
    spec: Spec,
    config: SegmentationConfig,
    model_recipe: ModelRecipe,
    ranks: Ranks,
    source: DataSource,
    *,
    dry: bool = False,
) -> Setup:
    """Return the setup of a run on this machine.

    Args:
        spec: The checkpoint's architecture.
        config: The task's configuration.
        model_recipe: The task's model and optimiser.
        ranks: This process among its peers.
        source: The data.
        dry: Nothing will be trained here; the recipe need not suit this machine.
    """
    device = pick_device(config.machine.device, ranks.local)
    if config.precision == "fp16" and device.type != "cuda" and not dry:
        raise UserError(
            "precision=fp16 needs a GPU; set precision=bf16 or precision=fp32 on a CPU (its rows "
            "then have a protocol of their own)"
        )
    plan = plan_batch(config.batch, world=ranks.world, at_most=config.machine.max_batch)
    cfg = full_config(spec, config, model_recipe, source, plan)
    parts = {"config": config, "model_recipe": model_recipe, "spec": spec, "source": source}
    return Setup(**parts, plan=plan, cfg=cfg, device=device, ranks=ranks)


def build_model(setup: Setup) -> nn.Module:
    """Return the initialised segmentor; its backbone is still to be filled."""
    seed_everything(setup.config.seed)
    model = MODELS.build(setup.cfg.model)
    model.init_weights()
    return model
