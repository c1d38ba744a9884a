"""The recipe in Python: a specification and a configuration in, one mmengine Config out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from mimbench.model import Spec
from mimbench.system.errors import UserError
from mimbench.training.optim import BatchPlan
from mimbench.vit.normalise import on_bytes
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD, VitSpec
from transfer.segmentation.convert import Kind
from transfer.segmentation.data import DataSource
from transfer.segmentation.framework import SCOPE
from transfer.segmentation.pipelines import multiscale_pipeline, test_pipeline, train_pipeline
from transfer.segmentation.protocol import SegmentationConfig

SYNC_BN = {"type": "SyncBN", "requires_grad": True}


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What a task decides about its model and its optimiser; the rest of the recipe is shared."""

    kind: Kind
    backbone: dict[str, Any]
    neck: dict[str, Any] | None
    decode_head: dict[str, Any]
    auxiliary_head: dict[str, Any] | None
    lr: float
    layer_decay: float | None
    published_decay: bool
    depth: int
    tap_norm: bool
    more_embeddings: bool = False
    """Parameters before the blocks that mmseg's layer decay does not know: registers, a norm."""
    backbone_factor: float = 1.0
    """Of the backbone's learning rate, where there is no layer decay."""
    segmentor: str = "EncoderDecoder"
    notes: tuple[str, ...] = ()
    unpublished: str = ""
    """Why no published row was made with this recipe; empty where one may have been."""
    weight_decay: float | None = None
    """Instead of the configuration's: networks with levels have their families' own."""
    levels: dict[str, Any] | None = None
    """What `LevelDecay` needs to know, for a network with levels."""
    ran: Mapping[str, str] = field(default_factory=dict)
    """Where it is not what the protocol says: a column of its own."""


def backbone_config(
    spec: VitSpec, kind: Kind, crop: tuple[int, int], taps: tuple[int, ...], drop_path: float
) -> dict[str, Any]:
    """Return the entry of a backbone; whether it norms its taps or is frozen is the task's."""
    if kind == "TimmMAE":
        return {
            "type": kind,
            "spec": spec.to_json(),
            "img_size": list(crop),
            "out_indices": list(taps),
            "drop_path_rate": drop_path,
        }
    return {
        "type": kind,
        "img_size": tuple(crop),
        "patch_size": spec.patch_size,
        "embed_dims": spec.embed_dim,
        "num_layers": spec.depth,
        "num_heads": spec.num_heads,
        "mlp_ratio": spec.mlp_dim // spec.embed_dim,
        "init_values": 1.0,
        "drop_path_rate": drop_path,
        "out_indices": list(taps),
        "norm_cfg": {"type": "LN", "eps": spec.norm_eps},
        "act_cfg": {"type": "GELU"},
    }


def cross_entropy(weight: float) -> dict[str, Any]:
    """Return the loss entry of a head."""
    return {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight}


def statistics(spec: Spec) -> tuple[list[float], list[float]]:
    """Return mean and deviation on 0-255: the backbone's own, ImageNet's for BEiT as published."""
    relative = isinstance(spec, VitSpec) and spec.position == "relative"
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if relative else (spec.mean, spec.std)
    return on_bytes(mean), on_bytes(std)


def full_config(
    spec: Spec,
    config: SegmentationConfig,
    model_recipe: ModelRecipe,
    source: DataSource,
    plan: BatchPlan,
) -> Config:
    """Return everything mmengine needs, in one piece: print it and nothing is hidden.

    Args:
        spec: The checkpoint's architecture.
        config: The task's configuration.
        model_recipe: The task's model and optimiser.
        source: The data, with its classes.
        plan: The effective batch as micro-batches of this machine.
    """
    workers = config.machine.workers
    loader = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": {"type": "leave_to_parent"},
    }
    test_loader = {
        **loader,
        "batch_size": 1,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
    }
    pipeline = train_pipeline(config)
    train_loader = {
        **loader,
        "batch_size": plan.per_process * plan.micro_steps,
        "sampler": {"type": "PositionSampler", "seed": config.seed},
        "dataset": {
            "type": "SeededDataset",
            "seed": config.seed,
            "dataset": source.dataset("train", pipeline),
        },
    }
    val = {**test_loader, "dataset": source.dataset("val", test_pipeline(config))}
    return Config(
        {
            "default_scope": SCOPE,
            "model": model_config(spec, config, model_recipe, source),
            "train_dataloader": train_loader,
            "val_dataloader": val,
            "optim_wrapper": optim_config(config, model_recipe, plan),
            "param_scheduler": schedule_config(config),
            "train_cfg": {
                "type": "EffectiveBatchLoop",
                "max_iters": config.iterations,
                "val_interval": config.evaluate_every,
                "micro_steps": plan.micro_steps,
            },
            "val_evaluator": {"type": "ConfusionMetric", "ignore_index": 255},
            "tta_pipeline": multiscale_pipeline(config),
            "compile": config.machine.compile,
            "randomness": {"seed": config.seed, "deterministic": False},
            "env_cfg": {
                "cudnn_benchmark": False,
                "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            },
        }
    )


def model_config(
    spec: Spec, config: SegmentationConfig, model_recipe: ModelRecipe, source: DataSource
) -> dict[str, Any]:
    """Return mmseg's EncoderDecoder for this checkpoint, recipe and number of classes."""
    mean, std = statistics(spec)
    classes = len(source.names)
    heads = {"decode_head": {**model_recipe.decode_head, "num_classes": classes}}
    if model_recipe.neck:
        heads["neck"] = model_recipe.neck
    if model_recipe.auxiliary_head:
        heads["auxiliary_head"] = {**model_recipe.auxiliary_head, "num_classes": classes}
    return {
        "type": model_recipe.segmentor,
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": mean,
            "std": std,
            "bgr_to_rgb": True,
            "pad_val": 0,
            "seg_pad_val": 255,
            "size": tuple(config.crop),
            # a picture narrower than the window is padded, because the position grid is fixed
            "test_cfg": {"size": tuple(config.crop)},
        },
        "backbone": model_recipe.backbone,
        **heads,
        "train_cfg": {},
        "test_cfg": {
            "mode": "slide",
            "crop_size": tuple(config.crop),
            "stride": tuple(config.stride),
        },
    }


def optim_config(
    config: SegmentationConfig, model_recipe: ModelRecipe, plan: BatchPlan
) -> dict[str, Any]:
    """Return the optimiser entry; mixed precision is on exactly where the recipe says so."""
    out: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": {
            "type": "AdamW",
            "lr": model_recipe.lr,
            "betas": (0.9, 0.999),
            "weight_decay": (
                config.weight_decay
                if model_recipe.weight_decay is None
                else model_recipe.weight_decay
            ),
        },
        "accumulative_counts": plan.micro_steps,
    }
    if config.precision == "fp16":
        out |= {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    elif config.precision == "bf16":
        out["type"] = "BFloat16OptimWrapper"
    if model_recipe.backbone_factor != 1:
        keys = {"backbone": {"lr_mult": model_recipe.backbone_factor}}
        out["paramwise_cfg"] = {"custom_keys": keys}
    if model_recipe.levels is not None:
        return out | {
            "constructor": "LevelDecay",
            "paramwise_cfg": {"optimum": model_recipe.levels},
        }
    if model_recipe.layer_decay is not None:
        plain = model_recipe.published_decay and not model_recipe.more_embeddings
        out["constructor"] = (
            "LearningRateDecayOptimizerConstructor" if plain else "EmbeddingAwareLayerDecay"
        )
        out["paramwise_cfg"] = {
            "num_layers": model_recipe.depth,
            "decay_rate": model_recipe.layer_decay,
            "decay_type": "layer_wise",
        }
        if not plain:
            out["paramwise_cfg"]["spare_tables"] = not model_recipe.published_decay
    return out


def schedule_config(config: SegmentationConfig) -> list[dict[str, Any]]:
    """Return linear warm-up followed by polynomial decay to 0, both by optimiser step."""
    poly = {
        "type": "PolyLR",
        "eta_min": 0.0,
        "power": config.power,
        "begin": config.warmup,
        "end": config.iterations,
        "by_epoch": False,
    }
    if not config.warmup:
        return [poly]
    warmup = {"type": "LinearLR", "start_factor": config.warmup_from, "by_epoch": False}
    return [{**warmup, "begin": 0, "end": config.warmup}, poly]


def check_batch(plan: BatchPlan, *, synchronised: bool) -> None:
    """Refuse micro-batches of one image, on which batch norm after global pooling cannot train."""
    if plan.per_process < 2 and not synchronised:
        raise UserError(
            "one image per process and step: batch norm after global pooling needs two or more; "
            "raise machine.max_batch, or use several GPUs, where batch norm is synchronised"
        )
