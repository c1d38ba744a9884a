"""What every classification protocol states: how images are read, and how features are made of them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch.distributed as dist
from typing_extensions import Self

from mimbench.data.lists import ImageList
from mimbench.data.preprocess import Interpolation, Preprocess
from mimbench.data.sources import Source
from mimbench.data.subsets import Subset
from mimbench.features.bank import BankSpec, FeatureBank
from mimbench.features.extract import extract
from mimbench.model import Weights
from mimbench.system.errors import UserError
from mimbench.system.files import file_digest
from mimbench.system.runtime import Precision, Ranks
from mimbench.task import Machine

T = TypeVar("T")

PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How images are read and scored; where they are; what the machine allows."""

    image_size: int = 224
    resize: int | None = 256
    """Length of the shorter side before the centre crop; null leaves the image as it is."""
    interpolation: Interpolation = "bicubic"
    precision: Precision = "fp32"
    subset: Subset = field(default_factory=Subset)
    """The training images that are used."""
    source: Source = field(default_factory=Source)
    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        # says now, and with the configuration's name, what does not fit together
        self.preprocess()

    def preprocess(self, view: int = 0) -> Preprocess:
        """Return the centre crop that is scored, or a random view for training."""
        return Preprocess(
            size=self.image_size, resize=self.resize, interpolation=self.interpolation, view=view
        )

    def canonical(self) -> Self:
        """Return the same with what cannot move the number set back: where lists and images lie."""
        subset = self.subset
        if subset.file is not None:
            subset = replace(subset, file=by_content(subset.file))
        name = "folder" if self.source.name == "tar" else self.source.name
        return replace(self, subset=subset, source=replace(self.source, name=name))

    def images(self) -> tuple[ImageList, ImageList]:
        """Return the train and val lists."""
        train, val = self.source.open(self.data)
        return self.subset.of(train), val


def by_content(path: Path) -> Path:
    """Return a name for a list that follows from what it holds: its place is no part of a protocol."""
    try:
        return Path(f"list-{file_digest(path)[:12]}")
    except OSError as error:
        raise UserError(f"cannot read the list {path}: {error.strerror or error}") from error


@dataclass(frozen=True, kw_only=True)
class FrozenConfig(ImageConfig):
    """Features of a frozen backbone, computed once."""

    storage: Literal["fp32", "fp16", "bf16"] = "fp32"

    def bank(self, view: int = 0) -> BankSpec:
        """Return the features that this protocol needs, of the centre crop or of a random view."""
        return BankSpec(
            preprocess=self.preprocess(view), storage=self.storage, precision=self.precision
        )

    def features(
        self, weights: Weights, images: ImageList, ranks: Ranks, *, view: int = 0
    ) -> FeatureBank:
        """Return the complete bank of an image list."""
        return extract(weights, images, self.bank(view), self.machine, ranks=ranks)


def from_main(work: Callable[[], T], ranks: Ranks) -> T:
    """Return in every process what the first one computes; the others wait as long as it takes."""
    if ranks.world == 1:
        return work()
    # made before the work: a group of the usual patience would give up on hours of it
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    box: list[Any] = [work() if ranks.main else None]
    dist.broadcast_object_list(box, src=0, group=group)
    dist.destroy_process_group(group)
    return box[0]
