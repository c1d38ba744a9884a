"""What every masking strategy does to given images, as a checkpoint sees them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mimbench.checkpoints.files import read_vit
from mimbench.data.images import read
from mimbench.system.errors import UserError
from mimbench.vit.backbone import Backbone, build_backbone
from mimbench.vit.normalise import Normalisation
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.checkpoints.stored import MODEL, read_model
from pretrain.masks import MaskInput, MaskStrategy, boxes
from pretrain.masks.salience import outgoing
from pretrain.models.attention import backbone_attention
from pretrain.models.autoencoder import MaskedAutoencoder, to_patches
from pretrain.models.generator import Generator
from pretrain.models.masker import MaskingNetwork
from pretrain.models.reconstruction import PIXEL_TARGETS
from pretrain.models.teacher import Teacher, build_teacher
from pretrain.viewing.mask_networks import stored_generator, stored_masker
from pretrain.viewing.true_losses import losses_under, true_losses

logger = logging.getLogger(__name__)

PROBES = 12
"""Random masks under which every patch's reconstruction loss is averaged."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A strategy under one of its orders."""

    label: str
    strategy: MaskStrategy


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a checkpoint says about a batch of images."""

    images: Tensor
    """(b, 3, H, W) in [0, 1]"""
    grid: tuple[int, int]
    attention: Tensor
    """(b, n), mean over heads."""
    difficulty: Tensor | None
    log_probability: Tensor | None
    loss: Tensor | None
    """(b, n) true reconstruction loss, where the checkpoint has a decoder for pixels."""
    salience: Tensor | None = None
    trial: Callable[[Tensor], Tensor] | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    """For `boxes` and `segments` (b, H, W): the number of the annotated thing at each pixel."""
    keep: Tensor | None = None
    """(b, n) what a trained masking network wants to be seen."""

    def input(self, strategy: MaskStrategy) -> MaskInput:
        """Return what a strategy is given, at the end of its schedule."""
        kind = "boxes" if isinstance(strategy, boxes.Strategy) else "segments"
        return MaskInput(
            batch=len(self.images),
            grid=self.grid,
            device=self.images.device,
            difficulty=self.difficulty,
            attention=self.attention,
            images=self.images,
            log_probability=self.log_probability,
            salience=self.salience,
            trial=self.trial,
            labels=self.labels.get(kind),
            keep=self.keep,
        )


class Observer:
    """A checkpoint as a source of everything that masks may follow."""

    def __init__(
        self, path: Path, *, num_heads: int | None = None, size: int | None = None
    ) -> None:
        """Read the checkpoint.

        Args:
            path: A pretraining run, its model, or any encoder that mimbench reads.
            num_heads: Attention heads, for widths that no published model has.
            size: Side of the images to look at, where it is not the checkpoint's own.
        """
        self.model: MaskedAutoencoder | None = None
        self.teacher: Teacher | None = None
        self.generator: Generator | None = None
        self.masker: MaskingNetwork | None = None
        self.backbone: Backbone | None = None
        self.target: str | None = None
        stored = read_model(path, num_heads=num_heads) if _is_model(path) else None
        if stored is not None and "reconstructor.pred.weight" in stored.student:
            self.model, teacher = stored.build()
            self.teacher = teacher or build_teacher(self.model)
            self.target, self.spec = stored.target, stored.spec
            self.generator = stored_generator(stored.student)
            self.masker = stored_masker(stored.student, self.spec)
        else:
            self.backbone = build_backbone(
                read_vit(path, who="the laboratory", num_heads=num_heads)
            )
            self.spec: VitSpec = self.backbone.spec
        patch = self.spec.patch_size
        if size is not None and (size < patch or size % patch):
            raise UserError(f"--image-size {size} does not divide into patches of {patch}")
        self.size = self.spec.image_size if size is None else (size, size)
        self.grid = (self.size[0] // patch, self.size[1] // patch)

    def load(self, paths: Sequence[Path]) -> Tensor:
        """Return the middle of each image (b, 3, H, W) in [0, 1], as the checkpoint is shown it."""
        return torch.stack([fit_image(read(path), self.size) for path in paths]).float() / 255

    @torch.no_grad()
    def look(self, images: Tensor) -> Observation:
        """Return what the checkpoint says about images in [0, 1]."""
        if self.backbone is not None:
            heads = backbone_attention(self.backbone, images)
            return self._sight(images, heads, None, None)
        assert self.teacher is not None
        patches = self._patches(images)
        judged = self.teacher.predictor is not None
        views = self.teacher(patches, difficulty=judged, attention=True, grid=self.grid)
        assert views.attention is not None
        native = self.grid == self.spec.grid
        loss = self.true_loss(patches) if native and self.target in PIXEL_TARGETS else None
        seen = self._sight(images, views.attention, views.difficulty, loss)
        first = self.spec.class_tokens
        keep = None
        if self.masker is not None and self.model is not None and native:
            keep = self.masker(self.model.encoder.embed(patches)[:, first:])
        return dataclasses.replace(
            seen,
            keep=keep,
            salience=outgoing(self.teacher.encoder.embed(patches, grid=self.grid)[:, first:]),
            trial=None if loss is None else partial(self._trial, patches),
        )

    def _sight(
        self, images: Tensor, heads: Tensor, difficulty: Tensor | None, loss: Tensor | None
    ) -> Observation:
        chances = None
        if self.generator is not None:
            chances = self.generator(heads, self.grid)
        return Observation(
            images=images,
            grid=self.grid,
            attention=heads.mean(dim=1),
            difficulty=difficulty,
            log_probability=chances,
            loss=loss,
        )

    def _patches(self, images: Tensor) -> Tensor:
        normalise = Normalisation(self.spec.mean, self.spec.std)
        return to_patches(normalise(images), self.spec.patch_size)

    def true_loss(self, patches: Tensor) -> Tensor:
        """Return each patch's reconstruction loss (b, n), averaged over random masks that hide it."""
        assert self.model is not None
        return true_losses(
            self.model, patches, normalised=self.target == "normalised", looks=PROBES
        )

    def _trial(self, patches: Tensor, mask: Tensor) -> Tensor:
        assert self.model is not None
        _, losses = losses_under(self.model, patches, mask, normalised=self.target == "normalised")
        return losses.mean(dim=1)

    def offers(self) -> dict[str, str]:
        """Return need -> why this checkpoint cannot serve it."""
        missing = {}
        if self.teacher is None or self.teacher.predictor is None:
            missing["difficulty"] = "needs a loss predictor"
        if self.generator is None:
            missing["generator"] = "needs a trained generator"
        if self.masker is None or self.grid != self.spec.grid:
            missing["masker"] = "needs a trained masking network and images of the run's size"
        if self.model is None:
            missing["salience"] = "needs a pretraining run"
        if self.model is None or self.grid != self.spec.grid or self.target not in PIXEL_TARGETS:
            missing["trial"] = "needs a decoder for pixels and images of the run's size"
        return missing


def _is_model(path: Path) -> bool:
    return path.is_dir() or path.name == MODEL or path.suffix in {".pth", ".pt"}


def fit_image(
    image: Tensor, size: tuple[int, int], mode: InterpolationMode = InterpolationMode.BICUBIC
) -> Tensor:
    """Return the largest middle part of an image (c, H, W) that has the given shape, resized."""
    height, width = image.shape[1:]
    scale = min(height / size[0], width / size[1])
    part = vision.center_crop(image, [round(size[0] * scale), round(size[1] * scale)])
    return vision.resize(part, list(size), mode, antialias=mode != InterpolationMode.NEAREST)


def variants(ratio: float | None, grid: tuple[int, int]) -> list[Variant]:
    """Return every strategy in pretrain/masks, once for each of its orders, that fits the grid.

    Args:
        ratio: The share that all of them hide; by default each one's own.
        grid: Rows and columns of patches.
    """
    found = []
    # those that follow nothing come first, random ones before all: the others are read against them
    ordered = sorted(
        masks.available().items(),
        key=lambda item: (bool(item[1].needs), item[0] != "random", item[0]),
    )
    for name, cls in ordered:
        own = {f.name for f in dataclasses.fields(cast(Any, cls))}
        shared = {"ratio": ratio} if ratio is not None and "ratio" in own else {}
        hint = get_type_hints(cls).get("order")
        orders = get_args(hint) if get_origin(hint) is Literal else (None,)
        for order in orders:
            fields = {**shared, **({} if order is None else {"order": order})}
            strategy = masks.build({"name": name, **fields})
            try:
                strategy.count(grid[0] * grid[1])
            except UserError as error:
                logger.warning("%s is left out: %s", name, error)
                continue
            found.append(
                Variant(label=name if order is None else f"{name} {order}", strategy=strategy)
            )
    return found


def draw(variant: Variant, observation: Observation, seed: int) -> Tensor:
    """Return the variant's masks (b, n) for what was seen."""
    inp = observation.input(variant.strategy)
    return variant.strategy(inp, torch.Generator().manual_seed(seed))
