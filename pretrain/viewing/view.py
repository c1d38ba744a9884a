"""What a pretrained model makes of pictures: where it expects to fail, what it hides, what it fills in.

The numbers behind `pretrain.show`, without the drawing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from mimbench.data.images import CorruptImageError, read
from mimbench.system.errors import UserError
from mimbench.vit.normalise import Normalisation
from mimbench.vit.weights import VitSpec
from pretrain import masks
from pretrain.checkpoints.stored import StoredModel
from pretrain.masks import MaskInput, MaskStrategy
from pretrain.masks.hard import Strategy as Hard
from pretrain.models.autoencoder import MaskedAutoencoder, from_patches, split, take, to_patches
from pretrain.models.reconstruction import (
    EPSILON,
    normalise_patches,
    pair_signs,
    pixel_loss,
    rank_correlation,
)
from pretrain.models.teacher import Teacher, build_teacher

Pixels = Literal["pixels", "normalised"]

VISIBLE, RANDOM, HARD = 0, 1, 2
"""What a patch is under a mask: visible, hidden at random, hidden because it is hard."""


class Stage(NamedTuple):
    """The mask at one moment of the schedule."""

    progress: float
    """0 at the beginning of training, 1 at its end."""
    share: float
    """Share of the hidden patches that difficulty chose."""
    kinds: Tensor
    """(b, n): VISIBLE, RANDOM or HARD."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything that is shown, for all pictures at once; colours from 0 to 1."""

    spec: VitSpec
    images: Tensor
    """(b, 3, H, W)."""
    difficulty: Tensor | None
    """(b, n): the place of each patch among its picture's, from 0 (easiest) to 1 (hardest)."""
    stages: list[Stage]
    filled: Tensor | None
    """(b, 3, H, W): under the last stage's mask; None where the model predicts no pixels."""
    pixels: Pixels | None
    guessed: bool
    """What the model predicts was not said but found by trying."""
    agreement: float | None
    """Rank correlation (Kendall's tau) of the student's predicted losses with the true ones."""


def load_images(paths: Sequence[Path], spec: VitSpec) -> Tensor:
    """Return pictures (b, 3, H, W) in bytes: the middle, at the size that the model was made for."""
    size = list(spec.image_size)
    views = []
    for path in paths:
        try:
            image = read(path)
        except CorruptImageError as error:
            raise UserError(f"{error}; every IMAGE must be a picture file") from error
        scale = max(want / have for want, have in zip(size, image.shape[1:], strict=True))
        grown = [max(w, round(scale * h)) for w, h in zip(size, image.shape[1:], strict=True)]
        if grown != list(image.shape[1:]):
            image = vision.resize(image, grown, InterpolationMode.BICUBIC, antialias=True)
        views.append(vision.center_crop(image, size))
    return torch.stack(views)


def open_networks(stored: StoredModel, path: Path) -> tuple[MaskedAutoencoder, Teacher | None]:
    """Return the student, and the network that predicts losses: the average, else the student."""
    parts = {name.partition(".")[0] for name in stored.student}
    if "reconstructor" not in parts:
        raise UserError(
            f"{path} holds an encoder only: the reconstruction decoder and the loss predictor are "
            "missing, so there is nothing to reconstruct or predict. Give the run's folder, one of its "
            "checkpoints, its model.safetensors, or a pretraining checkpoint of HPM or MAE"
        )
    model, teacher = stored.build()
    if model.predictor is None:
        return model, None
    return model, teacher if teacher is not None else build_teacher(model)


def strategy_of(stored: StoredModel, *, predicts_loss: bool) -> MaskStrategy:
    """Return how training chose what to hide; the released defaults where the file does not say."""
    if stored.mask is not None:
        own = masks.build(stored.mask)
        if own.needs <= ({"difficulty", "images"} if predicts_loss else {"images"}):
            return own
        return (
            Hard(ratio=stored.mask.get("ratio", 0.75))
            if predicts_loss
            else masks.build({"name": "random"})
        )
    return Hard() if predicts_loss else masks.build({"name": "random"})


def moments(strategy: MaskStrategy) -> tuple[float, ...]:
    """Return the moments of the schedule that are worth a picture."""
    return (0.0, 0.5, 1.0) if isinstance(strategy, Hard) else (1.0,)


def stage(
    strategy: MaskStrategy,
    progress: float,
    images: Tensor,
    spec: VitSpec,
    found: Tensor | None,
    seed: int,
) -> Stage:
    """Return the mask at one moment; the same dice at every moment, so that only difficulty moves."""
    inp = MaskInput(
        batch=len(images),
        grid=spec.grid,
        device=images.device,
        epoch_progress=progress,
        step_progress=progress,
        difficulty=found,
        images=images if "images" in strategy.needs else None,
    )
    kinds = strategy(inp, torch.Generator().manual_seed(seed)).long() * RANDOM
    share = 0.0
    if isinstance(strategy, Hard) and found is not None and (hard := strategy.hard_count(inp)):
        ranked = found.argsort(dim=1, descending=strategy.order == "hardest", stable=True)
        kinds.scatter_(1, ranked[:, :hard], HARD)
        share = hard / strategy.count(inp.patches)
    return Stage(progress, share, kinds)


@torch.no_grad()
def look(
    stored: StoredModel, path: Path, pictures: Sequence[Path], *, target: str | None, seed: int
) -> View:
    """Return what the model makes of pictures.

    Args:
        stored: The model.
        path: Where it came from, for messages.
        pictures: Image files.
        target: What it predicts (`pixels`, `normalised`); by default what the file says, else what
            explains the pictures better.
        seed: Fixes the random part of the masks.
    """
    spec = stored.spec
    model, teacher = open_networks(stored, path)
    raw = load_images(pictures, spec).float() / 255
    normalise = Normalisation(spec.mean, spec.std)
    normal = normalise(raw)
    patches = to_patches(normal, spec.patch_size)
    found = None if teacher is None else teacher(patches, difficulty=True).difficulty
    strategy = strategy_of(stored, predicts_loss=teacher is not None)
    stages = [stage(strategy, at, normal, spec, found, seed) for at in moments(strategy)]
    mask = stages[-1].kinds != VISIBLE
    visible, hidden = split(mask, int(mask[0].sum()))
    outputs = model(patches, visible, hidden)
    wanted = take(patches, hidden)
    said = target or stored.target
    pixels, guessed = settle(said, outputs.prediction, wanted)
    filled, agreement = None, None
    if pixels is not None:
        content = outputs.prediction if pixels == "pixels" else restored(outputs.prediction, wanted)
        whole = patches.scatter(1, hidden.unsqueeze(-1).expand_as(content), content)
        filled = normalise.inverse(from_patches(whole, spec.patch_size, spec.grid)).clamp(0, 1)
        true = pixel_loss(
            outputs.prediction, wanted if pixels == "pixels" else normalise_patches(wanted)
        )
        if outputs.difficulty is not None:
            agreement = rank_correlation(outputs.difficulty, pair_signs(true)).item()
    return View(
        spec=spec,
        images=raw,
        difficulty=None if found is None else places(found),
        stages=stages,
        filled=filled,
        pixels=pixels,
        guessed=guessed,
        agreement=agreement,
    )


def settle(said: str | None, prediction: Tensor, wanted: Tensor) -> tuple[Pixels | None, bool]:
    """Return what predictions are, None if no pixels, and whether that had to be guessed."""
    if said == "pixels" or said == "normalised":
        return said, False
    if said is not None or prediction.shape[-1] != wanted.shape[-1]:
        return None, False
    unexplained = {
        name: (pixel_loss(prediction, goal).mean() / goal.var()).item()
        for name, goal in (("pixels", wanted), ("normalised", normalise_patches(wanted)))
    }
    return ("pixels" if unexplained["pixels"] <= unexplained["normalised"] else "normalised"), True


def restored(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Return predictions of normalised patches with the true patches' brightness and contrast."""
    spread = (wanted.var(dim=-1, keepdim=True) + EPSILON).sqrt()
    return prediction * spread + wanted.mean(dim=-1, keepdim=True)


def places(difficulty: Tensor) -> Tensor:
    """Return each value's place among its row's, from 0 (smallest) to 1: scales carry no meaning."""
    order = difficulty.argsort(dim=1, stable=True).argsort(dim=1)
    return order.float() / max(1, difficulty.shape[1] - 1)
