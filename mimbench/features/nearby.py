"""Neighbouring settings that protocols on frozen features share: image size, interpolation, pooling, C, k.

A task puts those that fit its configuration together and declares them (`mimbench.task.Traits.nearby`).
Their names hold for every checkpoint, so that two checkpoints are compared setting by setting.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, get_args

from mimbench.data.preprocess import Interpolation
from mimbench.features.logistic.grid import Grid
from mimbench.model import Spec

C = TypeVar("C")
POOLINGS = ("cls", "avg", "cls+avg")
COARSEST = 32
"""Pixels of a patch where a network of the user's own does not say."""
STEP = 7
"""Images become about one part in so many smaller and larger: 224 pixels become 192 and 256."""
HALF_A_DECADE = 10**0.5


def sizes_nearby(spec: Spec, size: int) -> dict[str, int]:
    """Return the next smaller and larger size, in whole patches of the coarsest map."""
    patch = spec.levels[-1].stride if spec.levels else COARSEST
    smaller = min(round(size * (STEP - 1) / STEP / patch), (size - 1) // patch) * patch
    larger = max(round(size * (STEP + 1) / STEP / patch), size // patch + 1) * patch
    return {**({"smaller images": smaller} if smaller > 0 else {}), "larger images": larger}


def images_nearby(spec: Spec, config: C) -> dict[str, C]:
    """Return other image sizes, the resize in proportion, and the other interpolation.

    Args:
        spec: The architecture.
        config: Holds image_size, and where images are cropped resize; maybe interpolation. Where it
            leaves images as they are, a neighbour scales their shorter side to its own size.
    """
    fields: Any = config
    cropped, found = hasattr(fields, "resize"), {}
    for name, size in sizes_nearby(spec, fields.image_size).items():
        changes: dict[str, Any] = {"image_size": size}
        if cropped:
            old = fields.resize or fields.image_size
            changes["resize"] = max(size, round(old * size / fields.image_size))
        found[name] = replace(fields, **changes)
    resampled = not cropped or fields.resize is not None
    if resampled and hasattr(fields, "interpolation"):
        [other] = [k for k in get_args(Interpolation) if k != fields.interpolation]
        # the pair has one name, whichever of the two the recipe takes
        found["other interpolation"] = replace(fields, interpolation=other)
    return found


def poolings_nearby(chosen: str) -> dict[str, str]:
    """Return the other ways to make one vector of the last block."""
    return {f"{choice} features": choice for choice in POOLINGS if choice != chosen}


def counts_nearby(k: int) -> dict[str, int]:
    """Return half and twice as many neighbours."""
    return {**({"half of k": k // 2} if k > 1 else {}), "twice k": 2 * k}


def penalties_nearby(grid: Grid, note: Mapping[str, Any]) -> dict[str, Grid]:
    """Return grids of one value: half a decade below and above the C that a run chose.

    Args:
        grid: The recipe's.
        note: What the run says of its fit; without a C there is no neighbour.
    """
    c = note.get("C")
    if not isinstance(c, float):
        return {}
    values = {"C / 3.2": c / HALF_A_DECADE, "C x 3.2": c * HALF_A_DECADE}
    return {n: replace(grid, lowest=v, highest=v, steps=1) for n, v in values.items()}
