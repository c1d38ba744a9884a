"""Canonical weights under other projects' names, so that their tools can read them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mimbench.checkpoints.files import write_weights
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.vit.weights import VitSpec, VitWeights

Tensors = dict[str, Tensor]


def export(weights: VitWeights, to: str, path: Path) -> list[str]:
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
    state, notes = TARGETS[to](weights)
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
    state, notes = folded(weights)
    return with_biases(state, spec), notes


def detectron2_state(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors of ViTDet's backbone: no class token and no final norm have a place there."""
    spec = weights.spec
    _only(spec, "detectron2's ViT", register_tokens=0, pre_norm=False, mlp="mlp")
    _only(spec, "detectron2's ViT", activation="gelu")
    state, notes = folded(weights)
    state = with_biases(state, spec)
    left = [n for n in state if n == "cls_token" or n.startswith(("norm.", "fc_norm."))]
    kept = {f"backbone.net.{n}": t for n, t in state.items() if n not in left}
    row = bool(spec.position_prefix)
    notes += [
        f"left out, no place in ViTDet: {', '.join(left) or 'nothing'}",
        f"build the ViT with pretrain_img_size={spec.image_size[0]}, "
        f"pretrain_use_cls_token={row}, patch_size={spec.patch_size}",
    ]
    return kept, notes


def timm_state(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors of timm's VisionTransformer, or of its Beit or Eva where positions ask for it."""
    spec = weights.spec
    if spec.position == "absolute":
        return dict(weights.tensors), [f"a timm VisionTransformer {_timm_arguments(spec)}"]
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


def folded(weights: VitWeights) -> tuple[Tensors, list[str]]:
    """Return the tensors with LayerScale multiplied into the layer before it."""
    state = dict(weights.tensors)
    if not weights.spec.layer_scale:
        return state, []
    for i in range(weights.spec.depth):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{i}.{scale}.gamma")
            at = f"blocks.{i}.{layer}"
            state[f"{at}.weight"] = state[f"{at}.weight"] * gamma[:, None]
            state[f"{at}.bias"] = state[f"{at}.bias"] * gamma
    return state, [
        "LayerScale folded into the layers before it: exact for features, not for training"
    ]


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
    for name, value in {"position": "absolute", **wanted}.items():
        if getattr(spec, name) != value:
            raise UserError(f"{who} cannot hold {name} = {getattr(spec, name)!r}, only {value!r}")


TARGETS: dict[str, Callable[[VitWeights], tuple[Tensors, list[str]]]] = {
    "mae": mae_state,
    "timm": timm_state,
    "detectron2": detectron2_state,
}
