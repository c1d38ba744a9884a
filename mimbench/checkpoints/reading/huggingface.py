"""What Hugging Face's configuration files say about a ViT beside its tensors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mimbench.checkpoints.reading.architecture import Family
from mimbench.checkpoints.reading.layout import Raw
from mimbench.system.errors import UserError

ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "quick_gelu": "quick_gelu"}


def family_from(raw: Raw, default: Family) -> Family:
    """Return the family's conventions with the folder's configuration laid over them."""
    config = raw.config.get("vision_config", raw.config)
    if not isinstance(config, Mapping):
        raise UserError("config.json: 'vision_config' is not an object")
    family = replace(default, **_normalisation(raw.preprocessor))
    if not config:
        return family
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int):
        family = replace(family, heads={width: heads})
    if isinstance(eps := config.get("layer_norm_eps"), float):
        family = replace(family, norm_eps=eps)
    gated = bool(config.get("use_swiglu_ffn") or config.get("use_gated_mlp"))
    if (act := config.get("hidden_act")) is not None and not gated:
        if act not in ACTIVATIONS:
            raise UserError(
                f"config.json: activation '{act}' is not one of {', '.join(ACTIVATIONS)}"
            )
        family = replace(family, activation=ACTIVATIONS[act])
    return replace(family, grid=_grid(config) or family.grid)


def notes_for(raw: Raw, default: Family) -> tuple[str, ...]:
    """Return what had to be assumed because configuration files are not beside the tensors."""
    notes = ()
    if not raw.config:
        notes += (f"no config.json: layer norm epsilon {default.norm_eps:g} assumed",)
    if not _normalisation(raw.preprocessor):
        notes += (
            f"no preprocessor_config.json: mean {default.mean} and std {default.std} assumed",
        )
    return notes


def _normalisation(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, ours in (("image_mean", "mean"), ("image_std", "std")):
        value = preprocessor.get(key)
        if isinstance(value, list) and len(value) == 3:
            out[ours] = tuple(float(v) for v in value)
    return out if len(out) == 2 else {}


def _grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    size, patch = config.get("image_size"), config.get("patch_size")
    if isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list) or not isinstance(patch, int) or len(size) != 2 or patch < 1:
        return None
    return int(size[0]) // patch, int(size[1]) // patch
