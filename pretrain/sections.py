"""Sections that every kind of pretraining recipe has: the encoder, the images, the training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mimbench.system.config import to_mapping
from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision
from mimbench.training.learner import LoopConfig
from mimbench.vit.sizes import SIZES
from mimbench.vit.weights import IMAGENET_MEAN, IMAGENET_STD, Triple, VitSpec

BYSTANDERS = ("log_every", "save_every", "keep_every", "tensorboard", "steps")
"""Values of the training section that move no weight."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which images, and what every kind of crop has in common."""

    name: str = ""
    """'' for a folder or tar file; 'list' for train.txt; 'wds/<pattern>' for shards; 'hfds/<name>'
    for a Hugging Face data set; 'sample' for the sample data's cards, 'scenes' for its scenes,
    'sample+scenes' for both; or another indexed name of timm's."""
    root: Path | None = None
    split: str = "train"
    images: int | None = None
    """So many of them, spread evenly over their order; by default all."""
    image_size: int = 224
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.5
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The ViT: a published size, or its own numbers."""

    size: Literal["tiny", "small", "base", "large", "huge"] = "base"
    patch: int = 16
    width: int | None = None
    depth: int | None = None
    heads: int | None = None

    def spec(self, data: ImagesConfig) -> VitSpec:
        """Return the specification for images as the data section gives them."""
        size = SIZES[self.size]
        width, depth, heads = (
            own if own is not None else usual
            for own, usual in (
                (self.width, size.embed_dim),
                (self.depth, size.depth),
                (self.heads, size.num_heads),
            )
        )
        if width % heads or width % 4:
            raise UserError(
                f"an encoder width of {width} must divide by its {heads} heads, and by 4"
            )
        if data.image_size % self.patch:
            raise UserError(
                f"images of {data.image_size} do not divide into patches of {self.patch}"
            )
        side = data.image_size // self.patch
        return VitSpec(
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_dim=4 * width,
            patch_size=self.patch,
            grid=(side, side),
            mean=data.mean,
            std=data.std,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at once, and what is kept; see `mimbench.training.learner.LoopConfig`."""

    epochs: int = 200
    batch: int = 2048
    steps: int | None = None
    seed: int = 0
    precision: Precision = "fp32"
    log_every: int = 50
    save_every: int = 500
    keep_every: int = 100
    max_broken: float = 0.001
    tensorboard: bool = True

    def loop(self, *, clip_grad: float | None, best: str) -> LoopConfig:
        """Return the training loop's configuration."""
        return LoopConfig(
            epochs=self.epochs,
            batch=self.batch,
            steps=self.steps,
            seed=self.seed,
            precision=self.precision,
            clip_grad=clip_grad,
            log_every=self.log_every,
            save_every=self.save_every,
            keep_every=self.keep_every,
            best=best,
            max_broken=self.max_broken,
            tensorboard=self.tensorboard,
        )


def moving_values(config: object) -> dict[str, Any]:
    """Return all of a recipe that may move the weights: not the machine, nor where data lies."""
    value = to_mapping(config)
    del value["machine"], value["data"]["root"]
    for name in BYSTANDERS:
        del value["training"][name]
    drop_unused(value, {"data": {"images": None}})
    return value


def drop_unused(value: dict[str, Any], later: Mapping[str, Mapping[str, Any]]) -> None:
    """Delete options that came after runs had been made where they stand as if they were not there.

    What is not used moves no weight, so runs from before an option existed go on.
    """
    for section, defaults in later.items():
        for name, default in defaults.items():
            if value[section][name] == default:
                del value[section][name]
