"""Published fine-tuning recipes of networks with levels: FCMAE, SimMIM and SparK.

Sources: facebookresearch/ConvNeXt-V2 TRAINING.md, microsoft/SimMIM configs, keyu-tian/SparK README. The
published rows of FCMAE and SparK evaluate an average of the weights (EMA); here the last weights are
scored, and the result says so. Where a family published no recipe for a size, its B's is taken.
"""

from dataclasses import replace
from typing import Any, Literal

from mimbench.system.errors import UserError
from transfer.classification.recipes import FinetuneRecipe

StagedName = Literal["fcmae", "simmim", "spark"]
EMA = "published rows evaluate an average of the weights (EMA); these are the last weights"


def _recipe(
    epochs: int, warmup: int, lr: float, decay: float, drop: float, **own: Any
) -> FinetuneRecipe:
    usual: dict[str, Any] = {"batch": 1024, "note": EMA, "mixed": 32} | own
    return FinetuneRecipe(
        epochs=epochs,
        warmup=warmup,
        lr=lr,
        scaled=True,
        layer_decay=decay,
        drop_path=drop,
        pool="avg",
        **usual,
    )


SIMMIM_NOTE = "downsampling has the rate of the stage it leads into; the published run's, one lower"

STAGED: dict[StagedName, dict[str, FinetuneRecipe]] = {
    "fcmae": {
        "ConvNeXtV2-T": _recipe(300, 40, 8e-4, 0.9, 0.2),
        "ConvNeXtV2-B": _recipe(100, 20, 6.25e-4, 0.6, 0.1, joined=3),
    },
    "simmim": {
        # 1.25e-3 for 512 images
        "Swin-B": _recipe(100, 20, 6.25e-4, 0.8, 0.1, note=SIMMIM_NOTE),
        "Swin-L": _recipe(100, 20, 6.25e-4, 0.7, 0.2, note=SIMMIM_NOTE),
    },
    "spark": {
        "ConvNeXt-S": _recipe(400, 20, 2e-4, 0.7, 0.3, batch=4096),
        "ConvNeXt-B": _recipe(400, 20, 1e-4, 0.7, 0.4, batch=4096),
        "ConvNeXt-L": _recipe(200, 10, 1e-4, 0.7, 0.5, batch=4096),
    },
}


def staged_recipe(name: StagedName, model: str) -> FinetuneRecipe:
    """Return the recipe for a model of the recipe's family."""
    table = STAGED[name]
    if model in table:
        return table[model]
    family = next(iter(table)).rpartition("-")[0]
    if model.rpartition("-")[0] != family:
        raise UserError(f"recipe {name} is published for {family} alone, this is {model}")
    stand_in = f"{family}-B"
    note = f"{name} published no recipe for {model} that is known: that of {stand_in}"
    return replace(table[stand_in], note=f"{note}. {table[stand_in].note}")
