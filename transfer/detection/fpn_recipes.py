"""Published values of Mask R-CNN with FPN by family, and the parameter groups that follow from them.

Sources: Swin-Transformer-Object-Detection and facebookresearch/ConvNeXt `object_detection`, both on
mmdetection 2. ConvNeXt published Mask R-CNN for T alone; S and B have their values of Cascade Mask R-CNN.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from torch import nn

from mimbench.model import Spec
from mimbench.networks.levels import LevelSpec

TRUNK = "backbone.bottom_up.body."


@dataclass(frozen=True, kw_only=True)
class FpnOptimum:
    """What a family does at one size."""

    lr: float
    drop_path: float
    layer_decay: float = 1.0
    joined: int = 1
    """Consecutive blocks that layer decay counts as one."""
    spared: Literal["norms", "vectors"] = "norms"
    """Without weight decay: norms, bias and position tables; or every vector and bias of the detector."""
    source: str = ""


def _convnext(lr: float, drop_path: float, decay: float, source: str) -> FpnOptimum:
    return FpnOptimum(
        lr=lr, drop_path=drop_path, layer_decay=decay, joined=3, spared="vectors", source=source
    )


SWIN = FpnOptimum(lr=1e-4, drop_path=0.2, source="Swin-T")
CONVNEXT = _convnext(1e-4, 0.4, 0.95, "ConvNeXt-T")
OPTIMA: Mapping[str, Mapping[str, FpnOptimum]] = {
    "swin": {"T": SWIN},
    "convnext": {
        "T": CONVNEXT,
        "S": _convnext(2e-4, 0.6, 0.7, "ConvNeXt-S in Cascade Mask R-CNN"),
        "B": _convnext(2e-4, 0.7, 0.8, "ConvNeXt-B in Cascade Mask R-CNN"),
    },
}


def published(spec: Spec) -> tuple[FpnOptimum, str]:
    """Return a network's values, and a remark where they are not its own published ones."""
    if not isinstance(spec, LevelSpec):
        return SWIN, f"a module of the user's own: the values of {SWIN.source}"
    table = OPTIMA.get(spec.family, OPTIMA["swin"])
    found = table.get(spec.model.rpartition("-")[2], table["T"])
    own = found.source == spec.model
    return found, "" if own else f"{spec.model} has no published values: those of {found.source}"


def spec_of(spec: Mapping[str, Any]) -> LevelSpec:
    """Return the specification that detectron2's lazy configuration carries as plain values."""
    plain: Any = OmegaConf.to_container(spec) if isinstance(spec, DictConfig) else spec
    return LevelSpec.from_json(plain)


def group_of(level: int, layers: int, joined: int) -> int:
    """Return the group of a level of layer decay, from the top: 0 for what learns at the full rate.

    Args:
        level: 0 for the stem, then the blocks in order, `layers - 1` for the top.
        layers: Number of levels.
        joined: Consecutive blocks that count as one.
    """
    groups = 1 + -(-(layers - 2) // joined)
    if level == 0:
        return groups
    return 0 if level >= layers - 1 else groups - 1 - (level - 1) // joined


def staged_parameters(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    spec: Mapping[str, Any],
    layer_decay: float,
    joined: int,
) -> list[dict[str, Any]]:
    """Return ConvNeXt's groups: rates by level of the trunk, no weight decay for vectors and biases.

    Args:
        model: The detector.
        base_lr: Of the top level, of fresh norms, pyramid and heads.
        weight_decay: Of matrices and kernels.
        spec: A `LevelSpec` as plain values.
        layer_decay: Factor from one group to the one below.
        joined: Consecutive blocks that count as one group.
    """
    whole = spec_of(spec)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = name.removeprefix(TRUNK)
        level = whole.layer_of(own) if own != name else whole.layers - 1
        rate = base_lr * layer_decay ** group_of(level, whole.layers, joined)
        decay = 0.0 if parameter.ndim == 1 or name.endswith(".bias") else weight_decay
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())
