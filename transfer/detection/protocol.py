"""ViTDet's recipe in plain values: its configuration, what depends on the model's size, the arithmetic."""

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

from mimbench.model import Spec
from mimbench.system.config import later
from mimbench.system.errors import UserError
from mimbench.vit.sizes import SIZES, Size
from mimbench.vit.weights import VitSpec
from transfer.detection.detector import BATCH, STEPS, DetectorConfig, ResolvedRecipe

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


def plan_steps(config: Config) -> ResolvedRecipe:
    """Return the recipe for a trunk of which nothing is known: length and schedule alone."""
    images = config.images or STEPS * BATCH
    first, second = (round(drop * STEPS) for drop in config.drops)
    return ResolvedRecipe(
        steps=images // config.batch,
        schedule=(first, second, STEPS),
        warmup=config.warmup,
        layer_decay=1.0,
        drop_path=0.0,
        decay_all=False,
        global_blocks=(),
        depth=0,
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
