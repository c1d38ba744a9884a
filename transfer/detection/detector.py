"""What every detector here shares, whatever its trunk: data, pictures, heads, schedule."""

from dataclasses import dataclass, field
from pathlib import Path

from mimbench.system.config import later
from mimbench.system.runtime import Precision
from mimbench.task import Machine

STEPS = 184_375
"""100 epochs x 118,000 images / batch 64; the published schedule is drawn on this length."""
DROPS = (163_889, 177_546)
"""Steps of `STEPS` at which the learning rate falls to a tenth: 88.9 % and 96.3 %."""
WARMUP = 250
"""Steps of `STEPS` of linear warm-up: a fraction, so that a shorter run warms up shorter."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Edges:
    """Pictures of their own shape, sized by their short edge; the defaults are the published ones."""

    short: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short edges that a training picture is resized to; `image_size` is that of scoring."""
    longest: int = 1333
    """Of the long edge, in training and in scoring."""
    share: float = 0.5
    """Of the training pictures that are cropped before."""
    before: tuple[int, ...] = (400, 500, 600)
    """Short edges before the crop."""
    crop: tuple[int, int] = (384, 600)
    """Smallest and largest side of the crop."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        sides = {"short": self.short, "before": self.before, "crop": self.crop}
        for name, values in sides.items():
            if not values or min(values) < 1 or max(values) > self.longest:
                raise ValueError(
                    f"{name} is {values}, expected sides of 1 to {self.longest} (longest)"
                )
        if self.crop[0] > self.crop[1]:
            raise ValueError(f"crop is {self.crop}, expected the smaller side first")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}, expected 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Mask R-CNN on any data in COCO's format, whatever its trunk: data, pictures, heads, schedule."""

    data: Path
    """Folder of the pictures and annotations."""
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    train_images: str = "train2017"
    train_json: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_json: str = "annotations/instances_val2017.json"

    image_size: int = 1024
    """Side of the square that the model sees; smaller pictures are padded with the mean colour."""
    resize: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: the factor by which a training picture's fit into the square varies."""
    flip: float = 0.5
    edges: Edges | None = later(None)
    """In place of large-scale jitter on a square."""

    batch: int = BATCH
    """Effective, whatever the number of processes."""
    images: int | None = None
    """Training pictures drawn in all; None for the published number of the model's size."""
    weight_decay: float = 0.1
    warmup: float = WARMUP / STEPS
    drops: tuple[float, float] = (DROPS[0] / STEPS, DROPS[1] / STEPS)
    drop_path: float | None = None
    precision: Precision = "fp16"

    pyramid_channels: int = 256
    anchor_scale: float = 8.0
    """Side of an anchor in strides of its level: 8 gives 32..512 pixels."""
    box_convs: int = 4
    box_width: int = 1024
    mask_convs: int = 4
    proposals: int = 256
    """Anchors sampled in each picture for the region proposal loss."""
    candidates: int = 1000
    """Region proposals kept in each picture; twice as many before suppression in training."""
    regions: int = 512
    """Regions sampled in each picture for the box loss."""

    eval_every: int = 5000
    """Steps between scores on the way; 0 for the end only."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name in (
            "image_size",
            "batch",
            "pyramid_channels",
            "box_width",
            "proposals",
            "candidates",
            "regions",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.edges is not None and self.resize != DetectorConfig.resize:
            raise ValueError("resize belongs to large-scale jitter; beside edges leave it out")
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"resize is {self.resize}, expected two rising positive factors")
        if not 0 <= self.warmup < self.drops[0] < self.drops[1] <= 1:
            raise ValueError(
                f"warmup {self.warmup} and drops {self.drops} should rise within 0..1: "
                "they are fractions of the run"
            )
        if self.images is not None and self.images < self.batch:
            raise ValueError(f"images is {self.images}, less than one batch of {self.batch}")

    @property
    def most_at_once(self) -> int:
        """Pictures that share a forward pass at most; beside a larger one a picture would be padded."""
        return self.machine.max_batch if self.edges is None else 1


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe:
    """A recipe with nothing left open, for one model."""

    steps: int
    schedule: tuple[int, int, int]
    """First drop, second drop and length, in steps of the schedule as it was published."""
    warmup: float
    layer_decay: float
    drop_path: float
    decay_all: bool
    global_blocks: tuple[int, ...]
    depth: int
    notes: tuple[str, ...] = ()

    def windows(self, size: int) -> dict[int, int]:
        """Return the window of every block that has one."""
        return {i: size for i in range(self.depth) if i not in self.global_blocks}
