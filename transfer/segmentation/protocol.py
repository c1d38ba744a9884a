"""What can be set: the fields that UperNet and the linear head share, and the published values."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from mimbench.system.config import later
from mimbench.system.errors import UserError
from mimbench.system.runtime import Precision
from mimbench.task import Machine
from mimbench.vit.sizes import size_of
from mimbench.vit.weights import VitSpec

Pair = tuple[int, int]
Family = Literal["mae", "beit", "ibot"]

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of the published multi-scale test; each is also flipped."""


Settings = TypeVar("Settings", bound="SegmentationConfig")


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Data, crops, schedule and test: ADE20K's published setting where nothing else is said."""

    data: Path
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    train_images: str = "images/training"
    train_labels: str = "annotations/training"
    val_images: str = "images/validation"
    val_labels: str = "annotations/validation"
    classes: str = ""
    """File under `data` with a class name on each line; '' = ADE20K's 150."""
    reduce_zero_label: bool = True
    """Label 0 means 'not labelled', classes start at 1."""
    ignore_index: int = 255
    """Label in the files that means 'not labelled'."""
    joined: tuple[tuple[int, ...], ...] = later(())
    """Groups of labels in the files that count as one class, the first of the group."""
    iterations: int = 160_000  # 127 epochs x 20 210 images / 16
    batch: int = 16
    """Images for each optimiser step, over all processes."""
    crop: Pair = (512, 512)
    scale: Pair = (2048, 512)
    """Longest and shortest side that pictures are resized into, keeping their ratio."""
    resize: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    """A training crop with more of one class than this is drawn again (ten times at most)."""
    distortion: bool = True
    """Random brightness, contrast, saturation and hue."""
    weight_decay: float = 0.05
    warmup: int = 1_500
    warmup_from: float = 1e-6
    power: float = 1.0
    """Of the polynomial decay to 0."""
    precision: Precision = "fp16"
    """Of training; tests run in fp32."""
    stride: Pair = (341, 341)
    """Of the sliding test window, which is as large as the crop."""
    multiscale: tuple[float, ...] = ()
    """Also test at these scales, each flipped too, averaged."""
    evaluate_every: int = 16_000
    """Iterations between scores on the way; the reported score is the last."""

    def __post_init__(self):
        for name in ("iterations", "batch", "warmup", "evaluate_every"):
            if getattr(self, name) < (0 if name == "warmup" else 1):
                raise UserError(f"{name} is {getattr(self, name)}; expected a positive number")
        if self.warmup >= self.iterations:
            raise UserError(
                f"a warm-up of {self.warmup} iterations leaves none of {self.iterations} to train; "
                "shorten it (warmup=...)"
            )
        if self.warmup == 1:
            raise UserError("a warm-up has at least 2 iterations; use warmup=0 for none")


def rehearsal(config: Settings) -> Settings:
    """Return the recipe with a few iterations of training, so that its test can be timed."""
    return replace(config, iterations=4, warmup=0, evaluate_every=4)


def canonical(config: Settings) -> Settings:
    """Return the recipe of the single-scale number after the last step: what only stands beside is off."""
    return replace(config, multiscale=(), evaluate_every=16_000)


@dataclass(frozen=True, kw_only=True)
class VitOptimum:
    """A family's published fine-tuning values for one size of ViT."""

    lr: float
    layer_decay: float
    drop_path: float
    source: str


OPTIMA: dict[Family, dict[str, VitOptimum]] = {
    "mae": {
        "B": VitOptimum(lr=1e-4, layer_decay=0.65, drop_path=0.1, source="mmsegmentation, MAE-B"),
    },
    "beit": {
        "B": VitOptimum(lr=7e-4, layer_decay=0.65, drop_path=0.1, source="BEiT-B 512"),
        "L": VitOptimum(lr=2e-5, layer_decay=0.95, drop_path=0.2, source="BEiT-L 512"),
    },
    "ibot": {
        "S": VitOptimum(lr=3e-5, layer_decay=0.9, drop_path=0.1, source="iBOT-S"),
        "B": VitOptimum(lr=8e-5, layer_decay=0.65, drop_path=0.1, source="iBOT-B"),
    },
}
"""Sizes that a family did not publish take its B values, and the run says so."""


def published(family: Family, spec: VitSpec) -> tuple[VitOptimum, str]:
    """Return the family's values for this size of ViT, and a remark where they are another size's."""
    table = OPTIMA[family]
    size = size_of(spec.embed_dim, spec.depth)
    if size and size.letter in table:
        return table[size.letter], ""
    shape = f"ViT-{size.letter}" if size else f"width {spec.embed_dim} and depth {spec.depth}"
    remark = (
        f"no learning rate, layer decay and drop path are published for {family} at {shape}; "
        f"the values of {table['B'].source} stand in (sweep lr over 3e-5, 1e-4, 3e-4 for a fair row)"
    )
    return table["B"], remark


def tap_blocks(depth: int) -> tuple[int, ...]:
    """Return the four blocks whose outputs are used: 3, 5, 7, 11 of 12; 7, 11, 15, 23 of 24."""
    if depth < 4:
        raise UserError(f"four taps need at least four blocks, this backbone has {depth}")
    return tuple(round(depth * part / 6) - 1 for part in (2, 3, 4, 6))
