"""Published fine-tuning recipes of networks with levels: FCMAE, SimMIM and SparK.

Sources: facebookresearch/ConvNeXt-V2 TRAINING.md and main_finetune.py, microsoft/SimMIM configs,
keyu-tian/SparK README and downstream_imagenet (arg.py, util.py). FCMAE and SparK score an average of the
weights; SparK's ResNets are trained by LAMB under a binary loss. Where a family published no recipe for
a size, its B's (ResNet: 50's) is taken.
"""

from dataclasses import replace
from typing import Any, Literal

from mimbench.system.errors import UserError
from transfer.classification.recipes import FinetuneRecipe

StagedName = Literal["fcmae", "simmim", "spark"]
DECAY = 0.9999
"""Of the average of the weights: ConvNeXt V2's default, SparK's table."""
AVERAGED = frozenset({"fcmae", "spark"})
"""Recipes that score it."""
AUGMENTED = "SparK augments by TrivialAugment; here RandAugment"
OWN_LEVELS = (
    "SparK's own grouping of ResNet's layers and its synchronised batch norms are not reproduced; "
    + AUGMENTED
)


def _recipe(
    epochs: int, warmup: int, lr: float, decay: float, drop: float, **own: Any
) -> FinetuneRecipe:
    usual: dict[str, Any] = {"batch": 1024, "mixed": 32, "ema": DECAY} | own
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


def _spark(epochs: int, warmup: int, lr: float, drop: float, weight_decay: float) -> FinetuneRecipe:
    return _recipe(
        epochs, warmup, lr, 0.7, drop, batch=4096, weight_decay=weight_decay, repeated=3, note=AUGMENTED
    )  # fmt: skip


def _resnet(lr: float, decay: float, drop: float) -> FinetuneRecipe:
    return _recipe(
        300, 5, lr, decay, drop,
        batch=2048, optimizer="lamb", binary=True, weight_decay=0.02, note=OWN_LEVELS,
    )  # fmt: skip


SIMMIM_NOTE = "downsampling has the rate of the stage it leads into; the published run's, one lower"

STAGED: dict[StagedName, dict[str, FinetuneRecipe]] = {
    "fcmae": {
        "ConvNeXtV2-T": _recipe(300, 40, 8e-4, 0.9, 0.2),
        "ConvNeXtV2-B": _recipe(100, 20, 6.25e-4, 0.6, 0.1, joined=3),
    },
    "simmim": {
        # 1.25e-3 for 512 images
        "Swin-B": _recipe(100, 20, 6.25e-4, 0.8, 0.1, note=SIMMIM_NOTE, ema=0.0),
        "Swin-L": _recipe(100, 20, 6.25e-4, 0.7, 0.2, note=SIMMIM_NOTE, ema=0.0),
    },
    "spark": {
        "ConvNeXt-S": _spark(400, 20, 2e-4, 0.3, 0.01),
        "ConvNeXt-B": _spark(400, 20, 1e-4, 0.4, 0.01),
        "ConvNeXt-L": _spark(200, 10, 1e-4, 0.5, 0.02),
        "ResNet-50": _resnet(2e-3, 0.7, 0.05),
        "ResNet-101": _resnet(1e-3, 0.8, 0.2),
        "ResNet-152": _resnet(1e-3, 0.8, 0.2),
        "ResNet-200": _resnet(1e-3, 0.8, 0.2),
    },
}


def staged_recipe(name: StagedName, model: str) -> FinetuneRecipe:
    """Return the recipe for a model of the recipe's family."""
    table = STAGED[name]
    if model in table:
        return table[model]
    families = list(dict.fromkeys(known.rpartition("-")[0] for known in table))
    family = model.rpartition("-")[0]
    if family not in families:
        only = " and ".join(families)
        raise UserError(f"recipe {name} is published for {only} alone, this is {model}")
    stand_in = next(s for s in (f"{family}-B", f"{family}-50") if s in table)
    note = f"{name} published no recipe for {model} that is known: that of {stand_in}"
    return replace(table[stand_in], note=f"{note}. {table[stand_in].note}".removesuffix(". "))
