"""Training images for probes and fine-tuning, and the scoring of a trained classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from mimbench.data.images import CorruptImageError
from mimbench.data.lists import ImageList
from mimbench.data.preprocess import MODES, Decoded, Interpolation, Pixels, Preprocess
from mimbench.model import Spec
from mimbench.scores.metrics import rank_classes
from mimbench.system.errors import UserError
from mimbench.system.memory import Halving
from mimbench.system.progress import Progress
from mimbench.system.runtime import Precision, Ranks, autocast, pick_device
from mimbench.system.signals import leave_signals_to_parent
from mimbench.task import Machine
from mimbench.vit.normalise import Normalisation


class TrainImages:
    """A list's images under a random transform; the loop seeds each item."""

    def __init__(self, images: ImageList, transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            image = self.images.open(index)
        except UserError as error:
            # while training another image may take its place, within the loop's limit
            raise CorruptImageError(self.name(index), str(error)) from error
        return self.transform(image), int(self.images.labels[index])

    def name(self, index: int) -> str:
        """Return the image's path."""
        return self.images.names[index]


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Random resized crop and flip, to uint8; the backbone normalises."""

    kind: Literal["byol", "inception"] = "inception"
    """byol: one draw, cut at the image's edge (MAE's probe); inception: torchvision's retries."""
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"a crop of scale {self.scale} and flip {self.flip} is not possible")

    def box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Return a random (top, left, height, width)."""
        if self.kind == "inception":
            return RandomResizedCrop.get_params(image, list(self.scale), [3 / 4, 4 / 3])  # pyright: ignore[reportArgumentType]
        width, height = image.size
        area = width * height * torch.empty(1).uniform_(*self.scale).item()
        ratio = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        w = min(round(math.sqrt(area * ratio)), width)
        h = min(round(math.sqrt(area / ratio)), height)
        top = int(torch.randint(0, height - h + 1, (1,)))
        left = int(torch.randint(0, width - w + 1, (1,)))
        return top, left, h, w

    def transform(self, size: int) -> "CropTo":
        """Return the transform to squares of `size`."""
        return CropTo(self, size)


@dataclass(frozen=True)
class CropTo:
    """A crop at a size."""

    crop: Crop
    size: int

    def __call__(self, image: Image.Image) -> Tensor:
        """Return (3, size, size) uint8."""
        box, mode = self.crop.box(image), MODES[self.crop.interpolation]
        out: Any = TF.resized_crop(image, *box, size=[self.size, self.size], interpolation=mode)  # pyright: ignore[reportArgumentType]
        if torch.rand(1) < self.crop.flip:
            out = TF.hflip(out)
        return TF.pil_to_tensor(out)


def predict(
    model: nn.Module,
    spec: Spec,
    images: ImageList,
    preprocess: Preprocess,
    machine: Machine,
    *,
    ranks: Ranks,
    precision: Precision,
) -> Tensor:
    """Return the five best classes of every image (n, 5), on each process all of them."""
    device = next(model.parameters()).device
    normalise = Normalisation(spec.mean, spec.std).to(device)

    def best(pixels: Tensor) -> Tensor:
        with autocast(device, precision):
            return rank_classes(model(normalise.of_bytes(pixels)))

    training = model.training
    model.eval()
    ranked = answers(best, images, preprocess, machine, ranks=ranks)
    model.train(training)
    return ranked


@torch.no_grad()
def answers(
    answer: Callable[[Tensor], Tensor],
    images: ImageList,
    preprocess: Pixels,
    machine: Machine,
    *,
    ranks: Ranks,
    width: int = 5,
    label: str = "val",
) -> Tensor:
    """Return what `answer` says of every image (n, width) int64, on each process all of it.

    Args:
        answer: Images in bytes (b, 3, H, W) on the device -> (b, width) whole numbers.
        images: The list.
        preprocess: From an image to pixels.
        machine: Batch size and loader processes.
        ranks: This process.
        width: Numbers for each image.
        label: Name of the progress line.
    """
    device = pick_device(machine.device, ranks.local)
    mine = range(ranks.rank, len(images), ranks.world)
    size = machine.max_batch
    plan = [list(mine[i : i + size]) for i in range(0, len(mine), size)]
    loader: DataLoader[Any] = DataLoader(
        Decoded(images, preprocess),
        batch_sampler=plan,
        # processes for a single batch would take longer than the batch
        num_workers=machine.workers if len(plan) > 1 else 0,
        worker_init_fn=leave_signals_to_parent,
    )
    ranked = torch.zeros(len(images), width, dtype=torch.int64, device=device)
    fit = Halving(size=size)
    bar = Progress(label, len(mine)) if ranks.main else None
    for indices, pixels in loader:
        done = 0
        while done < len(pixels):

            def piece(count: int, pixels: Tensor = pixels, done: int = done) -> Tensor:
                return answer(pixels[done : done + count].to(device, non_blocking=True))

            found = fit.attempt(piece)
            ranked[indices[done : done + len(found)].to(device)] = found
            done += len(found)
        if bar is not None:
            bar.step(len(pixels))
    if bar is not None:
        bar.close()
    if ranks.world > 1:
        dist.all_reduce(ranked)
    return ranked.cpu()
