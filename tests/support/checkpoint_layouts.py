"""Synthetic checkpoints: canonical tensors under every published layout's names (shared by tests)."""

import argparse
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.vit.positions import sincos_table
from mimbench.vit.weights import VitSpec, shapes

TINY = VitSpec(embed_dim=48, depth=3, num_heads=3, mlp_dim=192, patch_size=16, grid=(4, 4))
BASE = VitSpec(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072, patch_size=16, grid=(14, 14))
LARGE = replace(BASE, embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096)

Tensors = dict[str, Tensor]


def canonical(spec: VitSpec, *, meta: bool = False) -> Tensors:
    """Return tensors that are at no initial value; sine-cosine positions for the square grid."""
    generator = torch.Generator().manual_seed(0)
    out: Tensors = {}
    for name, shape in shapes(spec).items():
        if meta:
            out[name] = torch.empty(shape, device="meta")
            continue
        centre = 1.0 if re.search(r"norm.*weight|gamma", name) else 0.0
        out[name] = centre + 0.1 * torch.randn(shape, generator=generator)
        if name.endswith("attn.qkv.bias") and spec.position != "absolute":
            out[name][spec.embed_dim : 2 * spec.embed_dim] = 0.0
    if (
        "pos_embed" in out
        and spec.position_rule == "bicubic"
        and not meta
        and spec.first_tokens == 1
    ):
        out["pos_embed"] = sincos_table(spec.embed_dim, spec.grid, class_row=True)
    return out


def renamed(tensors: Mapping[str, Tensor], *rules: tuple[str, str]) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        for pattern, into in rules:
            if re.fullmatch(pattern, name):
                name = re.sub(pattern, into, name)
                break
        out[name] = tensor
    return out


def prefixed(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def split_qkv(tensors: Mapping[str, Tensor], *, key_bias: bool = True) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." not in name:
            out[name] = tensor
            continue
        for part, value in zip("qkv", tensor.chunk(3), strict=True):
            if key_bias or part != "k" or not name.endswith("bias"):
                out[name.replace("qkv", part)] = value.clone() if not value.is_meta else value
    return out


def beit_bias(tensors: Mapping[str, Tensor]) -> Tensors:
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            q, _, v = tensor.chunk(3)
            at = name.removesuffix("qkv.bias")
            out |= {f"{at}q_bias": q.clone(), f"{at}v_bias": v.clone()}
        else:
            out[re.sub(r"ls([12])\.gamma", r"gamma_\1", name)] = tensor
    return out


def like(tensors: Mapping[str, Tensor], *shape: int) -> Tensor:
    return torch.full(shape, 0.5, device=next(iter(tensors.values())).device)


def decoder(t: Tensors, *, loss: bool = False) -> Tensors:
    extra = {"mask_token": like(t, 1, 1, 32), "decoder_pos_embed": like(t, 1, 17, 32)}
    for suffix in ("", "_losspred") if loss else ("",):
        extra[f"decoder_blocks{suffix}.0.norm1.weight"] = like(t, 32)
        extra[f"decoder_norm{suffix}.weight"] = like(t, 32)
        extra[f"decoder_pred{suffix}.weight"] = like(t, 768, 32)
    return extra


def dino_head(t: Tensors) -> Tensors:
    return {"head.mlp.0.weight": like(t, 8, 8), "head.last_layer.weight_v": like(t, 8, 8)}


ARGS = argparse.Namespace(lr=0.1, output_dir="out")
OPTIMIZER = {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}


def hpm(t: Tensors) -> dict[str, Any]:
    whole = t | decoder(t, loss=True)
    ema = {k: v + 0.01 for k, v in whole.items()}
    return {"epoch": 1, "state_dict": prefixed(whole, "module."), "optimizer": OPTIMIZER,
            "model": "mae_vit_base", "ema_state_dict": ema, "loss_scaler": {"scale": 1.0}}  # fmt: skip


def mae_training(t: Tensors) -> dict[str, Any]:
    return {"model": t | decoder(t), "optimizer": OPTIMIZER, "epoch": 0, "scaler": {}, "args": ARGS}


def automae(t: Tensors) -> dict[str, Any]:
    whole = t | decoder(t) | {"scorer_pred.main.0.weight": like(t, 4, 4)}
    return {"model": whole, "discriminator": {"w": like(t, 2)}, "args": ARGS, "epoch": 3}


def dino(t: Tensors) -> dict[str, Any]:
    student = {k: v + 0.01 for k, v in t.items()}
    pair = {
        "student": prefixed(prefixed(student, "backbone.") | dino_head(t), "module."),
        "teacher": prefixed(t, "backbone.") | dino_head(t),
    }
    return {**pair, "args": ARGS, "dino_loss": {"center": like(t, 1, 8)}, "epoch": 1}


def ibot(t: Tensors) -> dict[str, Any]:
    top = dino(t)
    top["student"]["module.backbone.masked_embed"] = like(t, 1, t["cls_token"].shape[-1])
    return {**top, "ibot_loss": {"center": like(t, 1, 8)}}


def dinov2(t: Tensors) -> dict[str, Any]:
    out = {**t, "mask_token": like(t, 1, t["cls_token"].shape[-1])}
    if "reg_token" in out:
        out["register_tokens"] = out.pop("reg_token")
        # undo the class row's move: the official table has it, the official token lacks it
        row = like(t, 1, 1, t["cls_token"].shape[-1])
        out["pos_embed"] = torch.cat([row, out["pos_embed"]], dim=1)
        out["cls_token"] = out["cls_token"] - row
    return renamed(
        out,
        (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"blocks.\1.mlp.w12.\2") if is_swiglu(t) else ("-", ""),
        (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"blocks.\1.mlp.w3.\2") if is_swiglu(t) else ("-", ""),
    )


def is_swiglu(t: Tensors) -> bool:
    return t["blocks.0.mlp.fc1.weight"].shape[0] == 2 * t["blocks.0.mlp.fc2.weight"].shape[1]


def dinov2_dump(t: Tensors) -> dict[str, Any]:
    def chunked(match: re.Match[str]) -> str:
        return f"blocks.{int(match[1]) // 2}.{match[1]}.{match[2]}"

    flat = {re.sub(r"blocks\.(\d+)\.(.*)", chunked, n): v for n, v in dinov2(t).items()}
    return {"teacher": prefixed(flat, "backbone.") | {"dino_head.mlp.0.weight": like(t, 2, 2)}}


def mocov3(t: Tensors) -> dict[str, Any]:
    head = {"head.0.weight": like(t, 4, 4), "head.1.num_batches_tracked": torch.tensor(1)}
    state = prefixed(t | head, "module.base_encoder.")
    state |= prefixed({k: v + 0.01 for k, v in t.items()} | head, "module.momentum_encoder.")
    state["module.predictor.0.weight"] = like(t, 4, 4)
    return {"epoch": 1, "arch": "vit_base", "state_dict": state, "optimizer": OPTIMIZER}


def beit_pretrained(t: Tensors) -> dict[str, Any]:
    state = {n: v for n, v in beit_bias(t).items() if "bias_table" not in n}
    table = "attn.relative_position_bias_table"
    state["rel_pos_bias.relative_position_bias_table"] = t[f"blocks.0.{table}"]
    state["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    state |= {"mask_token": like(t, 1, 1, 4), "lm_head.weight": like(t, 4, 4)}
    return {"model": state}


def beit_finetuned(t: Tensors) -> dict[str, Any]:
    state = beit_bias(t) | {"head.weight": like(t, 21841, 2), "head.bias": like(t, 21841)}
    state["blocks.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    return {"model": state}


def simmim(t: Tensors) -> dict[str, Any]:
    state = beit_pretrained(t)["model"]
    state.pop("lm_head.weight")
    state = prefixed(state, "encoder.") | {"decoder.0.weight": like(t, 4, 4, 1, 1)}
    return {"model": state, "optimizer": OPTIMIZER, "max_accuracy": 0.0, "epoch": 1}


def timm_deit(t: Tensors) -> dict[str, Any]:
    return {"model": t | {"head.weight": like(t, 10, 48), "head.bias": like(t, 10)}, "args": ARGS}


HF_LAYER = r"encoder.layer.\1."
HF = (
    (r"cls_token", "embeddings.cls_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.attn\.q\.(.*)", HF_LAYER + r"attention.attention.query.\2"),
    (r"blocks\.(\d+)\.attn\.k\.(.*)", HF_LAYER + r"attention.attention.key.\2"),
    (r"blocks\.(\d+)\.attn\.v\.(.*)", HF_LAYER + r"attention.attention.value.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", HF_LAYER + r"attention.output.dense.\2"),
    (r"norm\.(.*)", r"layernorm.\1"),
)
HF_VIT = (
    *HF,
    (r"blocks\.(\d+)\.norm1\.(.*)", HF_LAYER + r"layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", HF_LAYER + r"layernorm_after.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", HF_LAYER + r"intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", HF_LAYER + r"output.dense.\2"),
)
HF_DINOV2 = (
    *HF,
    (r"blocks\.(\d+)\.(norm[12])\.(.*)", HF_LAYER + r"\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", HF_LAYER + r"layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.(.*)", HF_LAYER + r"mlp.\2"),
)
HF_DINOV3 = (
    (r"(cls_token)", r"embeddings.\1"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.\1"),
    (r"blocks\.(\d+)\.(norm[12])\.(.*)", r"layer.\1.\2.\3"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(.*)", r"layer.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"layer.\1.mlp.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"layer.\1.mlp.down_proj.\2"),
)


def hf_vit(t: Tensors) -> dict[str, Any]:
    state = prefixed(renamed(split_qkv(t), *HF_VIT), "vit.")
    return state | {"vit.pooler.dense.weight": like(t, 4, 4), "classifier.weight": like(t, 4, 4)}


def hf_vitmae(t: Tensors) -> dict[str, Any]:
    state = prefixed(renamed(split_qkv(t), *HF_VIT), "vit.")
    return state | {"decoder.decoder_embed.weight": like(t, 4, 4), "decoder.mask_token": like(t, 4)}


def hf_dinov2(t: Tensors) -> dict[str, Any]:
    official = dinov2(t)
    if "register_tokens" in official:
        official["reg_token"] = official.pop("register_tokens")
    official["embeddings.mask_token"] = official.pop("mask_token")
    return renamed(split_qkv(official), *HF_DINOV2)


def hf_dinov3(t: Tensors) -> dict[str, Any]:
    state = renamed(split_qkv(t, key_bias=False), *HF_DINOV3)
    return state | {"embeddings.mask_token": like(t, 1, 1, 4)}


def dinov3(t: Tensors) -> dict[str, Any]:
    out = renamed(t, (r"reg_token", "storage_tokens"))
    D = t["cls_token"].shape[-1]
    width = D // 3 if D == 48 else 64
    mask = torch.ones(3 * D)
    mask[D : 2 * D] = 0.0
    for name in list(out):
        if name.endswith("attn.qkv.bias"):
            out[f"{name}_mask"] = mask
    periods = 100.0 ** (torch.arange(width // 4) / (width // 4))
    return out | {"rope_embed.periods": periods.bfloat16(), "mask_token": like(t, 1, D)}


def dinov3_timm(t: Tensors) -> dict[str, Any]:
    return beit_bias(t)


MM_LAYER = r"layers.\1."
MM = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.projection.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", MM_LAYER + r"ln\2.\3"),
    (r"blocks\.(\d+)\.attn\.(.*)", MM_LAYER + r"attn.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", MM_LAYER + r"ffn.layers.0.0.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", MM_LAYER + r"ffn.layers.1.\2"),
    (r"norm\.(.*)", r"ln1.\1"),
)


def mmpretrain(t: Tensors) -> dict[str, Any]:
    state = prefixed(renamed(t, *MM), "backbone.") | {"neck.decoder_embed.weight": like(t, 4, 4)}
    return {"meta": {"epoch": 1, "cfg": "text"}, "state_dict": OrderedDict(state)}


CLIP = (
    (r"patch_embed\.proj\.(.*)", r"conv1.\1"),
    (r"norm_pre\.(.*)", r"ln_pre.\1"),
    (r"norm\.(.*)", r"ln_post.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", r"transformer.resblocks.\1.attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
)


def clip(t: Tensors) -> dict[str, Any]:
    state = prefixed(renamed(t, *CLIP), "visual.")
    state["visual.class_embedding"] = state.pop("visual.cls_token")[0, 0]
    state["visual.positional_embedding"] = state.pop("visual.pos_embed")[0]
    state |= {"visual.proj": like(t, 4, 4), "logit_scale": like(t), "ln_final.weight": like(t, 4)}
    return {"epoch": 1, "state_dict": prefixed(state, "module."), "optimizer": OPTIMIZER}


def openai_clip(t: Tensors) -> dict[str, Any]:
    state = clip(t)["state_dict"]
    state = {n.removeprefix("module."): v for n, v in state.items()}
    return state | {"input_resolution": torch.tensor(224), "vocab_size": torch.tensor(49408)}


def clip_trunk(t: Tensors) -> dict[str, Any]:
    return prefixed(t, "visual.trunk.") | {"visual.head.proj.weight": like(t, 4, 4)}


def vitdet(t: Tensors) -> dict[str, Any]:
    row = like(t, 1, 1, t["pos_embed"].shape[-1])
    state = {**t, "pos_embed": torch.cat([row, t["pos_embed"]], dim=1)}
    state = prefixed(state, "backbone.net.") | {"backbone.simfp_2.0.weight": like(t, 4, 4)}
    return {"model": state, "__author__": "someone"}


@dataclass(frozen=True)
class Layout:
    """One published layout: how to write it, and what reading it must give."""

    format: str
    write: Callable[[Tensors], dict[str, Any]]
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the specification that differ from a plain ViT's."""
    safetensors: bool = False
    extras: tuple[str, ...] = ()
    """Groups that must be reported as left out."""
    beside: dict[str, Any] = field(default_factory=dict)
    """Name -> content of the JSON files that make it a folder."""
    real: bool = False
    """Positions must be real values (the fixed table is what recognises the family)."""

    def spec(self, size: VitSpec) -> VitSpec:
        return replace(size, **self.changes)

    def save(self, size: VitSpec, folder: Path) -> Path:
        top = self.write(canonical(self.spec(size)))
        path = folder / ("model.safetensors" if self.safetensors else "model.pth")
        if self.safetensors:
            from safetensors.torch import save_file

            save_file({n: t.contiguous().clone() for n, t in top.items()}, path)
        else:
            torch.save(top, path)
        if not self.beside:
            return path
        for name, content in self.beside.items():
            (folder / name).write_text(json.dumps(content))
        path.rename(folder / "open_clip_pytorch_model.bin")
        return folder


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP_SAYS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "position_rule": "bicubic-antialias",
}
CLIPS = {**CLIP_SAYS, "norm_eps": 1e-5, "pre_norm": True, "patch_bias": False}
OFFSET = {"position_rule": "bicubic-offset"}
V2 = {**OFFSET, "layer_scale": True}
V2R = {"position_rule": "bicubic-antialias", "layer_scale": True, "register_tokens": 4,
       "position_rows_for_prefix": False}  # fmt: skip
BEIT = {"position": "relative", "layer_scale": True}
V3 = {"position": "rotary", "layer_scale": True, "register_tokens": 4, "norm_eps": 1e-5,
      "grid": (14, 14)}  # fmt: skip
DET = {"class_token": False, "final_norm": "none", "pool": "avg"}
HF12 = {"norm_eps": 1e-12}

LAYOUTS = {
    "hpm": Layout("hpm", hpm, extras=("decoder", "loss predictor", "mask token")),
    "mae-encoder": Layout("mae", lambda t: {"model": t}, real=True),
    "mae-training": Layout("mae", mae_training, extras=("decoder", "mask token")),
    "automae": Layout("automae", automae, extras=("decoder", "scorer", "discriminator")),
    "dino-training": Layout("dino", dino, OFFSET, extras=("projection head", "dino_loss")),
    "dino-backbone": Layout("dino", dict, OFFSET),
    "ibot-training": Layout("ibot", ibot, OFFSET, extras=("projection head", "ibot_loss")),
    "ibot-backbone": Layout("dino", lambda t: {"state_dict": t}, OFFSET),
    "dinov2": Layout("dinov2", dinov2, V2, extras=("mask token",)),
    "dinov2-registers": Layout("dinov2", dinov2, V2R, extras=("mask token",)),
    "dinov2-swiglu": Layout("dinov2", dinov2, {**V2, "mlp": "swiglu", "mlp_dim": 128}),
    "dinov2-dump": Layout("dinov2", dinov2_dump, V2, extras=("projection head",)),
    "mocov3": Layout("mocov3", mocov3, extras=("projection head", "momentum encoder")),
    "beit": Layout("beit", beit_pretrained, BEIT, extras=("token predictor",)),
    "beit-finetuned": Layout("beit", beit_finetuned, {**BEIT, **HALF, "final_norm": "fc_norm",
                             "pool": "avg"}, extras=("classifier head",)),
    "simmim": Layout("simmim", simmim, {**BEIT, "pool": "avg"}, extras=("decoder",)),
    "timm-pth": Layout("timm", timm_deit, {"position_rule": "bicubic-antialias"},
                       extras=("classifier head",)),
    "timm-safetensors": Layout("timm", dict, {"position_rule": "bicubic-antialias",
                               "final_norm": "fc_norm", "pool": "avg"}, safetensors=True),
    "hf-vit": Layout("hf-vit", hf_vit, {**HF12, **HALF}, safetensors=True, extras=("pooler",)),
    "hf-vitmae": Layout("hf-vit", hf_vitmae, HF12, safetensors=True, extras=("decoder",)),
    "hf-dinov2": Layout("hf-dinov2", hf_dinov2, V2, safetensors=True, extras=("mask token",)),
    "hf-dinov2-registers": Layout("hf-dinov2", hf_dinov2, V2R, safetensors=True),
    "hf-dinov3": Layout("hf-dinov3", hf_dinov3, V3, safetensors=True, extras=("mask token",)),
    "dinov3": Layout("dinov3", dinov3, V3, extras=("mask token",)),
    "dinov3-timm": Layout("dinov3", dinov3_timm, V3, safetensors=True),
    "mmpretrain": Layout("mmpretrain", mmpretrain, extras=("pre-training parts",)),
    "openclip": Layout("clip", clip, CLIPS, extras=("projection", "text tower"),
                       beside={"open_clip_config.json": {"model_cfg": {"embed_dim": 4}}}),
    "openai-clip": Layout("clip", openai_clip, {**CLIPS, "activation": "quick_gelu"}),
    "openclip-timm": Layout("clip", clip_trunk, CLIP_SAYS, extras=("projection",)),
    "vitdet": Layout("vitdet", vitdet, DET, extras=("feature pyramid",)),
}  # fmt: skip
