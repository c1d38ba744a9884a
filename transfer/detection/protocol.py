"""The recipe in plain values: its configuration, what depends on the model's size, and the arithmetic."""

from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

from mimbench.model import Spec
from mimbench.system.config import later
from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision
from mimbench.task import Machine
from mimbench.vit.sizes import SIZES, Size
from mimbench.vit.weights import VitSpec

STEPS = 184_375
"""100 epochs x 118,000 images / batch 64; the published schedule is drawn on this length."""
DROPS = (163_889, 177_546)
"""Steps of `STEPS` at which the learning rate falls to a tenth: 88.9 % and 96.3 %."""
WARMUP = 250
"""Steps of `STEPS` of linear warm-up: a fraction, so that a shorter run warms up shorter."""
BATCH = 64

FROZEN_HAS_NO = (
    "window",
    "global_blocks",
    "coordinates",
    "prefix",
    "drop_path",
    "layer_decay",
    "decay_all",
)
"""Fields that say how a trunk is trained or cut into windows."""


@dataclass(frozen=True, kw_only=True)
class SizeRecipe:
    """A column of the recipe table: what the official configs change with the model's size."""

    layer_decay: float
    drop_path: float
    share: Fraction = Fraction(1)
    """Length of the schedule as a share of `STEPS`."""
    decay_all: bool = False
    """Weight decay for norms and positions too (the official ViT-H config empties the exceptions)."""


TABLE = {
    "S": SizeRecipe(layer_decay=0.7, drop_path=0.1),
    "B": SizeRecipe(layer_decay=0.7, drop_path=0.1),
    "L": SizeRecipe(layer_decay=0.8, drop_path=0.4),
    "H": SizeRecipe(layer_decay=0.9, drop_path=0.5, share=Fraction(3, 4), decay_all=True),
}
"""By the model's size. S has no official config: it takes B's values."""


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
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"resize is {self.resize}, expected two rising positive factors")
        if not 0 <= self.warmup < self.drops[0] < self.drops[1] <= 1:
            raise ValueError(
                f"warmup {self.warmup} and drops {self.drops} should rise within 0..1: "
                "they are fractions of the run"
            )
        if self.images is not None and self.images < self.batch:
            raise ValueError(f"images is {self.images}, less than one batch of {self.batch}")


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """ViTDet Mask R-CNN; the defaults are `coco-vitdet-100`. None takes the value of the model's size."""

    patch_size: int | None = 16
    """None for the checkpoint's own."""
    window: int = 14
    global_blocks: int = 4
    """Blocks with global attention, evenly spread and the last one among them."""
    coordinates: Literal["grid", "window"] = later("grid")
    """Of rotary positions in windowed blocks: of the whole grid, or as if the window were the picture
    (EVA-02's and PE's detectors)."""
    prefix: Literal["dropped", "kept"] = later("dropped")
    """Class token and registers. `kept`: they attend in global blocks and wait, unchanged, while windowed
    blocks run (as RADIO's do)."""
    relative_positions: bool = True
    learning_rate: float = 1e-4
    layer_decay: float | None = None
    decay_all: bool | None = None
    attention: Literal["stock", "fused"] = "stock"
    """`fused`: the same numbers within 1e-5 through torch's fused attention."""
    trunk: Literal["trained", "frozen"] = later("trained")
    """`frozen`: the backbone as it is, with global attention in every block; only pyramid and heads
    learn. Our own protocol."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.window < 1:
            raise ValueError(f"window is {self.window}, expected at least 1")
        if self.trunk == "frozen":
            self._refuse_what_a_frozen_trunk_cannot_use()
        super().__post_init__()

    def _refuse_what_a_frozen_trunk_cannot_use(self) -> None:
        if self.relative_positions:
            raise ValueError(
                "trunk frozen with relative_positions: their tables start at zero and cannot be "
                "learned; set relative_positions: false"
            )
        usual = {field.name: field.default for field in fields(self)}
        for name in FROZEN_HAS_NO:
            if getattr(self, name) != usual[name]:
                raise ValueError(
                    f"trunk frozen with {name}: {getattr(self, name)}: a frozen backbone runs as it "
                    "was pretrained, without windows, dropped paths or rates of its own; leave "
                    f"{name} out"
                )


def column_of(spec: VitSpec) -> Size:
    """Return the size whose column a model takes: the nearest width that is not narrower."""
    sizes = [size for size in SIZES.values() if size.letter in TABLE]
    return next((size for size in sizes if spec.embed_dim <= size.embed_dim), sizes[-1])


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


def plan(config: Config, spec: VitSpec) -> ResolvedRecipe:
    """Return what the recipe means for a model of this size."""
    size = column_of(spec)
    column = TABLE[size.letter]
    length = int(STEPS * column.share) if config.images is None else config.images // config.batch
    notes = []
    if config.images is None:
        length = length * BATCH // config.batch
        if spec.embed_dim != size.embed_dim:
            notes.append(
                f"width {spec.embed_dim} has no official config: it takes {size.letter}'s values"
            )
        if size.letter == "S":
            notes.append("ViT-S has no official config: it takes B's values")
    frozen = config.trunk == "frozen"
    if frozen:
        # a column's values say how a trunk of this size is trained
        column = replace(column, layer_decay=1.0, drop_path=0.0)
        notes.append("the trunk is frozen: our own protocol, no published row has it")
    share = column.share if config.images is None else Fraction(1)
    first, second = (int(round(drop * STEPS) * share) for drop in config.drops)
    return ResolvedRecipe(
        steps=length,
        schedule=(first, second, int(STEPS * share)),
        warmup=config.warmup,
        layer_decay=column.layer_decay if config.layer_decay is None else config.layer_decay,
        drop_path=column.drop_path if config.drop_path is None else config.drop_path,
        decay_all=column.decay_all if config.decay_all is None else config.decay_all,
        global_blocks=spread(spec.depth if frozen else config.global_blocks, spec.depth),
        depth=spec.depth,
        notes=tuple(notes),
    )


def resolved(spec: Spec, config: Config) -> dict[str, object]:
    """Return the fields that the model's size decides, filled in."""
    if not isinstance(spec, VitSpec):
        return {}
    found = plan(config, spec)
    return {
        "images": found.steps * config.batch,
        "schedule": found.schedule,
        "layer_decay": found.layer_decay,
        "drop_path": found.drop_path,
        "decay_all": found.decay_all,
    }


def spread(count: int, depth: int) -> tuple[int, ...]:
    """Return `count` block indexes that end `count` equal parts of the depth."""
    if not 0 < count <= depth:
        raise UserError(f"global_blocks is {count}, expected 1 to {depth} for {depth} blocks")
    return tuple(sorted({round((i + 1) * depth / count) - 1 for i in range(count)}))
