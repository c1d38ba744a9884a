"""What timm's `config.json` says of a network beside its tensors: its name and its image statistics."""

from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer

from mimbench.checkpoints.reading.layout import Raw
from mimbench.model import Triple
from mimbench.system.errors import UserError
from mimbench.vit.network import ACTIVATIONS


def said_statistics(raw: Raw) -> tuple[Triple, Triple] | None:
    """Return mean and standard deviation, where the configuration says both."""
    said = raw.config.get("pretrained_cfg")
    values = [said.get(k) for k in ("mean", "std")] if isinstance(said, dict) else [None]
    for value in values:
        numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
        if value is not None and not (numbers and len(value) == 3):
            raise UserError(
                "config.json: mean and std of pretrained_cfg are not three numbers each"
            )
    return None if None in values else (_triple(values[0]), _triple(values[1]))


def told_by_architecture(raw: Raw) -> dict[str, Any]:
    """Return heads, epsilon and activation of a ViT of timm's that the configuration names."""
    name = raw.config.get("architecture")
    return dict(_of_vit(name)) if isinstance(name, str) and timm.is_model(name) else {}


@lru_cache(maxsize=16)
def _of_vit(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        model = timm.create_model(name)
    block: Any = model.get_submodule("blocks.0") if isinstance(model, VisionTransformer) else None
    if not isinstance(model, VisionTransformer) or not isinstance(block, Block):
        return {}
    act: Any = block.mlp.get_submodule("act")
    return {
        "heads": {model.embed_dim: block.attn.num_heads},
        "norm_eps": getattr(block.norm1, "eps", 1e-6),
        "activation": next(
            (ours for ours, kind in ACTIVATIONS.items() if type(act) is kind), "gelu"
        ),
    }


def _triple(value: Any) -> Triple:
    red, green, blue = map(float, value)
    return red, green, blue
