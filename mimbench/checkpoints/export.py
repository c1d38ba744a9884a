"""Canonical weights under other projects' names, so that their tools can read them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.checkpoints.files import write_weights
from mimbench.checkpoints.vitdet import to_vitdet, vitdet_arguments
from mimbench.model import Weights
from mimbench.networks.kinds import plain
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.vit.network import ACTIVATIONS
from mimbench.vit.weights import VitSpec, VitWeights, fold_layer_scale

Tensors = dict[str, Tensor]

FOLDED = "LayerScale folded into the layers before it: exact for features, not for training"


def export(weights: Weights, to: str, path: Path) -> list[str]:
    """Write the weights under the names of `to`; return what a reader must know.

    Args:
        weights: Canonical weights.
        to: One of `TARGETS`.
        path: `.safetensors` or `.pth`; a layout with nested entries needs `.pth`.
    """
    if to == "native":
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: our own format is safetensors; name it *.safetensors")
        write_weights(path, weights)
        return []
    state, notes = TARGETS[to](plain(weights, f"export --to {to}"))
    tensors = {name: t.detach().float().contiguous() for name, t in state.items()}
    if path.suffix == ".safetensors":
        with atomic_path(path) as part:
            save_file(tensors, part, metadata={"format": "pt"})
    elif path.suffix in (".pth", ".pt", ".bin"):
        with atomic_path(path) as part:
            torch.save(tensors if to == "timm" else {"model": tensors}, part)
    else:
        raise UserError(f"{path}: the name must end in .safetensors or .pth")
    return notes


def mae_state(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors under MAE's names, which DeiT and DINO code reads too."""
    spec = weights.spec
    _only(spec, "MAE's ViT", class_token=True, register_tokens=0, pre_norm=False, mlp="mlp")
    _only(spec, "MAE's ViT", activation="gelu", position_rows_for_prefix=True)
    notes = [FOLDED] if spec.layer_scale else []
    return with_biases(fold_layer_scale(weights), spec), notes


def detectron2_state(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors of ViTDet's backbone, as detection loads them."""
    converted = to_vitdet(weights)
    # a ViT with detectron2's default of biases then holds the file
    state = with_biases(converted.tensors, weights.spec)
    spec = replace(weights.spec, qkv_bias=True)
    built = ", ".join(f"{k}={v}" for k, v in vitdet_arguments(spec, converted).items())
    if spec.activation != "gelu":
        built += f", act_layer=timm.layers.activations.{ACTIVATIONS[spec.activation].__name__}"
    built += f", norm_layer=LayerNorm with eps={spec.norm_eps:g}"
    return {f"backbone.net.{name}": tensor for name, tensor in state.items()}, [
        converted.report,
        f"build the ViT with {built}",
    ]


def timm_state(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors of timm's VisionTransformer, or of its Beit or Eva where positions ask for it."""
    spec = weights.spec
    if spec.position == "absolute":
        return dict(weights.tensors), [f"a timm VisionTransformer {_timm_arguments(spec)}"]
    if spec.rotation == "stepped":
        raise UserError("timm's PE stretches its rotation to the picture: use --to native")
    if spec.rotation == "bordered":
        raise UserError("timm has no CAPI, whose registers are turned too: use --to native")
    state: Tensors = {}
    for name, tensor in weights.tensors.items():
        state |= _unfused(name, tensor, spec)
    kind = "Beit" if spec.position == "relative" else "Eva with rope_type='dinov3'"
    return state, [f"a timm {kind}: it keeps no key bias, which would change nothing"]


def _timm_arguments(spec: VitSpec) -> dict[str, Any]:
    return {
        "img_size": spec.image_size,
        "patch_size": spec.patch_size,
        "embed_dim": spec.embed_dim,
        "depth": spec.depth,
        "num_heads": spec.num_heads,
        "reg_tokens": spec.register_tokens,
        "no_embed_class": not spec.position_rows_for_prefix,
        "pre_norm": spec.pre_norm,
        "eps": spec.norm_eps,
    }


def _unfused(name: str, tensor: Tensor, spec: VitSpec) -> Tensors:
    """Return one tensor under the names of timm's Beit and Eva."""
    at, _, part = name.rpartition(".attn.")
    if part == "qkv.bias":
        q, k, v = tensor.chunk(3)
        if spec.position == "rotary" and bool(k.any()):
            raise UserError(f"{name}: timm's Eva has no key bias, and a rotated one has an effect")
        return {f"{at}.attn.q_bias": q, f"{at}.attn.v_bias": v}
    if name.endswith((".ls1.gamma", ".ls2.gamma")):
        return {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): tensor}
    if spec.mlp == "swiglu" and ".mlp.fc1." in name:
        gate, up = tensor.chunk(2)
        return {name.replace("fc1", "fc1_g"): gate, name.replace("fc1", "fc1_x"): up}
    return {name: tensor}


def with_biases(state: Mapping[str, Tensor], spec: VitSpec) -> Tensors:
    """Return the state with zero biases where the model has none: exact."""
    out = dict(state)
    if not spec.patch_bias:
        out["patch_embed.proj.bias"] = torch.zeros(spec.embed_dim)
    if not spec.qkv_bias:
        zeros = {
            f"blocks.{i}.attn.qkv.bias": torch.zeros(3 * spec.embed_dim) for i in range(spec.depth)
        }
        out |= zeros
    return out


def _only(spec: VitSpec, who: str, **wanted: Any) -> None:
    """Refuse a specification that the target cannot hold."""
    usual = {"position": "absolute", "class_tokens": 1, "norm": "layer", "mlp_norm": False}
    usual |= {"patch_norm": False, "proj_bias": True}
    for name, value in {**usual, **wanted}.items():
        if getattr(spec, name) != value:
            raise UserError(f"{who} cannot hold {name} = {getattr(spec, name)!r}, only {value!r}")


TARGETS: dict[str, Callable[[VitWeights], tuple[Tensors, list[str]]]] = {
    "mae": mae_state,
    "timm": timm_state,
    "detectron2": detectron2_state,
}
