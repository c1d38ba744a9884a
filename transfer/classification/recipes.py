"""Published fine-tuning recipes by model size: what differs between S, B, L and H.

Sources: facebookresearch/mae FINETUNE.md, Haochen-Wang409/HPM finetune scripts, bytedance/ibot (the
BEiT style; its learning rate is absolute and swept over 8e-4, 9e-4, 1e-3, 2e-3). Where a family
published no recipe for a size, the nearest size's is taken, and the result says so.
"""

from dataclasses import dataclass
from typing import Literal

from mimbench.vit.sizes import SIZES

Name = Literal["mae", "hpm", "beit", "deit"]


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """What a family does at one size."""

    epochs: int
    warmup: int
    batch: int
    lr: float
    """Of 256 images where `scaled`, else of the batch."""
    scaled: bool
    layer_decay: float
    drop_path: float
    pool: Literal["avg", "cls"]
    mixed: int
    """Images that share one draw of mixup and cutmix: one GPU's share in the published runs."""
    note: str = ""
    joined: int = 1
    """Consecutive blocks that layer decay counts as one."""
    ema: float = 0.0
    """Decay of the average of the weights that is scored; 0 scores the last weights."""
    optimizer: Literal["adamw", "lamb"] = "adamw"
    binary: bool = False
    """Each class is a yes or no of its own (binary cross-entropy), in place of a softmax."""
    weight_decay: float = 0.05
    repeated: int = 1
    """Views of an image in an epoch, which then sees as many images fewer (repeated augmentation)."""


def _mae(
    epochs: int, lr: float, decay: float, drop: float, note: str = "", *, mixed: int = 32
) -> FinetuneRecipe:
    return FinetuneRecipe(
        epochs=epochs,
        warmup=5,
        batch=1024,
        lr=lr,
        scaled=True,
        layer_decay=decay,
        drop_path=drop,
        pool="avg",
        mixed=mixed,  # 1024 on 32 GPUs (B, L) or 64 (H)
        note=note,
    )


def _hpm(epochs: int, batch: int, note: str = "") -> FinetuneRecipe:
    return FinetuneRecipe(
        epochs=epochs,
        warmup=5,
        batch=batch,
        lr=5e-4,
        scaled=True,
        layer_decay=0.8,
        drop_path=0.1,
        pool="avg",
        mixed=batch // 8,
        note=note,
    )


SWEPT = "published rows are the best of lr 8e-4, 9e-4, 1e-3 and 2e-3: 1e-3 here"


def _beit(
    epochs: int, warmup: int, decay: float, drop: float, note: str = SWEPT, *, mixed: int = 128
) -> FinetuneRecipe:
    return FinetuneRecipe(
        epochs=epochs,
        warmup=warmup,
        batch=1024,
        lr=1e-3,
        scaled=False,
        layer_decay=decay,
        drop_path=drop,
        pool="cls",
        mixed=mixed,
        note=note,
    )


def _deit() -> FinetuneRecipe:
    return FinetuneRecipe(
        epochs=1000,
        warmup=5,
        batch=768,
        lr=7.5e-6 / 2,  # published for 512 images
        scaled=True,
        layer_decay=1.0,
        drop_path=0.1,
        pool="cls",
        mixed=96,  # 768 on 8 GPUs
    )


RECIPES: dict[Name, dict[str, FinetuneRecipe]] = {
    "mae": {
        "S": _mae(100, 5e-4, 0.65, 0.1, "MAE published no recipe for S: that of B"),
        "B": _mae(100, 5e-4, 0.65, 0.1),
        "L": _mae(50, 1e-3, 0.75, 0.2),
        "H": _mae(50, 1e-3, 0.75, 0.3, mixed=16),
    },
    "hpm": {
        "S": _hpm(100, 384, "HPM published no recipe for S: that of B"),
        "B": _hpm(100, 384),
        "L": _hpm(50, 512),
        "H": _hpm(50, 512, "HPM published no recipe for H: that of L"),
    },
    "beit": {
        "S": _beit(200, 20, 0.75, 0.1),
        "B": _beit(100, 20, 0.65, 0.2),
        "L": _beit(50, 5, 0.75, 0.4, mixed=64),
        "H": _beit(
            50,
            5,
            0.75,
            0.4,
            f"no BEiT-style recipe for H was published: that of L; {SWEPT}",
            mixed=64,
        ),
    },
    # one recipe for every size; the sets differ in learning rate and length
    "deit": {letter: _deit() for letter in ("S", "B", "L", "H")},
}


def recipe_for(name: Name, width: int) -> FinetuneRecipe:
    """Return the recipe for a model's width; for another width, that of the nearest size."""
    known = [size for size in SIZES.values() if size.letter in RECIPES[name]]
    nearest = min(known, key=lambda size: (abs(size.embed_dim - width), size.embed_dim))
    recipe = RECIPES[name][nearest.letter]
    if nearest.embed_dim == width:
        return recipe
    letters = ", ".join(size.letter for size in known)
    note = f"width {width} is none of {letters}: the recipe of {nearest.letter}"
    return FinetuneRecipe(**{**recipe.__dict__, "note": f"{note}. {recipe.note}".strip()})
