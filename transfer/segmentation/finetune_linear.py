"""Fine-tune with a linear decoder: the whole network under one 1x1 convolution, ade-ft-linear.

Kerssies et al. 2024 (How to benchmark vision foundation models for semantic segmentation?): logits of
normed patches, enlarged bilinearly; AdamW at 1e-4 (head) and 1e-5 (encoder), weight decay 0.05 on
everything, polynomial decay 0.9, no warm-up, 40 000 steps of 16 images. By their figure it keeps the
ranking of UperNet at a thirteenth of the training; numbers of its table were not found. In the test
windows are spread evenly along the longer side. Not as published: patches that are not 16 stay as
they are (there resampled to 16), and a crop without any label is not drawn again.
Command: `python -m transfer.segmentation CKPT --head ft-linear --data ADEChallengeData2016`.
"""

from dataclasses import dataclass
from pathlib import Path

from mimbench.model import Weights
from mimbench.networks.kinds import plain_vit
from mimbench.system.errors import UserError
from mimbench.task import TaskResult, Traits
from mimbench.vit.weights import VitSpec
from transfer.segmentation import heads, windows  # noqa: F401
from transfer.segmentation.convert import obstacles
from transfer.segmentation.protocol import SegmentationConfig, rehearsal
from transfer.segmentation.recipe import ModelRecipe, backbone_config, cross_entropy
from transfer.segmentation.train import run_task

__all__ = ["MAIN_METRIC", "TRAITS", "VERSION", "Config", "model_recipe", "run"]

VERSION = 1
MAIN_METRIC = "miou"
TRAITS = Traits(effort=1, rehearsal=rehearsal)
TASK = "transfer.segmentation.finetune_linear"


@dataclass(frozen=True, kw_only=True)
class Config(SegmentationConfig):
    """The shared fields, and what the linear decoder sets."""

    iterations: int = 40_000
    warmup: int = 0
    power: float = 0.9
    max_class_share: float = 1.0
    lr: float = 1e-4
    """Of the head."""
    encoder_lr: float = 1e-5
    drop_path: float = 0.0


def model_recipe(spec: VitSpec, config: Config) -> ModelRecipe:
    """Return the model and optimiser for a checkpoint's architecture."""
    if refusals := obstacles(spec, "TimmMAE", config.crop):
        raise UserError(f"no backbone here trains this checkpoint: {'; '.join(refusals)}")
    backbone = backbone_config(spec, "TimmMAE", config.crop, (spec.depth - 1,), config.drop_path)
    normed = spec.final_norm == "norm"
    notes = []
    if not normed:
        notes.append(f"no norm on the patches: this checkpoint's is '{spec.final_norm}'")
    if spec.patch_size != 16:
        notes.append(f"patches stay {spec.patch_size} (the published runs resample them to 16)")
    return ModelRecipe(
        kind="TimmMAE",
        backbone=backbone | {"tap_norm": normed},
        neck=None,
        decode_head={
            "type": "LinearHead",
            "in_channels": [spec.embed_dim],
            "in_index": [0],
            "input_transform": "resize_concat",
            "channels": spec.embed_dim,
            "dropout_ratio": 0.0,
            "norm_cfg": None,
            "align_corners": False,
            "loss_decode": cross_entropy(1.0),
        },
        auxiliary_head=None,
        lr=config.lr,
        layer_decay=None,
        published_decay=True,
        depth=spec.depth,
        tap_norm=normed,
        backbone_factor=config.encoder_lr / config.lr,
        segmentor="EvenWindows",
        notes=tuple(notes),
    )


def run(weights: Weights, config: Config, out: Path) -> TaskResult:
    """Fine-tune and score; `out` receives the curve and the model."""
    weights = plain_vit(weights)
    return run_task(TASK, VERSION, weights, config, model_recipe(weights.spec, config), out)
