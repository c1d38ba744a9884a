"""What Hugging Face's configuration files say about a ViT beside its tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import Raw
from mimbench.system.errors import UserError, printable
from mimbench.vit.weights import Activation

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


def family_from(raw: Raw, default: Family) -> Family:
    """Return the family's conventions with the folder's configuration laid over them."""
    config = raw.config.get("vision_config", raw.config)
    if not isinstance(config, Mapping):
        raise UserError("config.json: 'vision_config' is not an object")
    family = replace(default, **normalisation(raw.preprocessor))
    if not config:
        return family
    width, heads = _whole(config, "hidden_size"), _whole(config, "num_attention_heads")
    if width and heads:
        family = replace(family, heads={width: heads})
    if (eps := _real(config, "layer_norm_eps")) is not None:
        family = replace(family, norm_eps=eps)
    gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
    if (act := config.get("hidden_act")) is not None and not gated:
        if not isinstance(act, str) or act not in ACTIVATIONS:
            raise UserError(
                f"config.json: activation {_shown(act)} is not one of {', '.join(ACTIVATIONS)}"
            )
        family = replace(family, activation=ACTIVATIONS[act])
    return replace(family, grid=_grid(config) or family.grid, patch=_whole(config, "patch_size"))


def notes_for(raw: Raw, default: Family) -> tuple[str, ...]:
    """Return what had to be assumed because configuration files are not beside the tensors."""
    notes = ()
    if not raw.config:
        notes += (f"no config.json: layer norm epsilon {default.norm_eps:g} assumed",)
    if not normalisation(raw.preprocessor):
        notes += (
            f"no preprocessor_config.json: mean {default.mean} and std {default.std} assumed",
        )
    return notes


def normalisation(
    preprocessor: Mapping[str, Any], file: str = "preprocessor_config.json"
) -> dict[str, Any]:
    """Return a family's `mean` and `std` as a configuration says them; {} unless it says both."""
    out: dict[str, Any] = {}
    for key, ours in (("image_mean", "mean"), ("image_std", "std")):
        value = preprocessor.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_real, value)):
            raise UserError(f"{file}: {key} is {_shown(value)}, expected three numbers")
        out[ours] = tuple(float(v) for v in value)
    return out if len(out) == 2 else {}


def _grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    size, patch = config.get("image_size"), _whole(config, "patch_size")
    sides: list[Any] = size if isinstance(size, list) else [size, size]
    if size is None or patch is None:
        return None
    if len(sides) != 2 or not all(type(side) is int and 0 < side < LARGEST for side in sides):
        raise UserError(f"config.json: image_size is {_shown(size)}, expected one or two sizes")
    return sides[0] // patch, sides[1] // patch


LARGEST = 1 << 16
"""No width, number of heads, patch or image of a published ViT is near it."""


def _whole(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    if isinstance(value, list) and len(value) == 2 and _plain(value) and value[0] == value[1]:
        value = value[0]  # [16, 16]
    if value is not None and not (type(value) is int and 0 < value < LARGEST):
        raise UserError(f"config.json: {key} is {_shown(value)}, expected a positive whole number")
    return value


def _real(config: Mapping[str, Any], key: str) -> float | None:
    value = config.get(key)
    if value is not None and not _is_real(value):
        raise UserError(f"config.json: {key} is {_shown(value)}, expected a number")
    return None if value is None else float(value)


def _is_real(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def _plain(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)


def _shown(value: Any) -> str:
    """Return a value for a message: its kind alone where it has parts."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 1 << 60:
        return "an enormous number"
    return printable(repr(value), 60)
