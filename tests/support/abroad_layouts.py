"""Files as other people's training code writes them, in miniature: what each of them must become."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.checkpoint_layouts import (
    ARGS,
    CLIP,
    OPTIMIZER,
    Tensors,
    decoder,
    dinov2,
    like,
    mmpretrain,
    prefixed,
    renamed,
    split_qkv,
)


def lightning(state: dict[str, Any]) -> dict[str, Any]:
    """Return what Lightning saves around a state."""
    return {
        "epoch": 3, "global_step": 30, "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_k_models": {}, "kth_value": like(state)}},
        "optimizer_states": [OPTIMIZER], "lr_schedulers": [], "hparams_name": "kwargs",
        "hyper_parameters": ARGS,
    }  # fmt: skip


def lightly_mae(t: Tensors) -> dict[str, Any]:
    return lightning(prefixed(t, "backbone.vit.") | {"decoder.mask_token": like(t, 1, 1, 4)})


def lightly_dino(t: Tensors) -> dict[str, Any]:
    student = prefixed({k: v + 0.01 for k, v in t.items()}, "student_backbone.")
    heads = {
        "student_head.layers.0.weight": like(t, 4, 4),
        "teacher_head.layers.0.weight": like(t, 4, 4),
    }
    return lightning(student | prefixed(t, "teacher_backbone.") | heads)


def lightly_simple(t: Tensors) -> dict[str, Any]:
    extra = {
        "projection_head.layers.0.weight": like(t, 4, 4),
        "online_classifier.weight": like(t, 4, 4),
    }
    return lightning(prefixed(t, "backbone.") | extra)


def solo_learn(t: Tensors) -> dict[str, Any]:
    momentum = prefixed({k: v + 0.01 for k, v in t.items()}, "momentum_backbone.")
    extra = {"projector.0.weight": like(t, 4, 4), "classifier.weight": like(t, 4, 4)}
    return lightning(momentum | prefixed(t, "backbone.") | extra)


def stable_pretraining(t: Tensors) -> dict[str, Any]:
    student = prefixed({k: v + 0.01 for k, v in t.items()}, "backbone.student.")
    extra = {"projector.0.weight": like(t, 4, 4), "callbacks_modules.probe.weight": like(t, 4, 4)}
    return lightning(student | prefixed(t, "backbone.teacher.") | extra)


def pixio(t: Tensors) -> dict[str, Any]:
    return dict(t)


def crossmae(t: Tensors) -> dict[str, Any]:
    cross = {
        "decoder_blocks.0.cross_attn.kv.weight": like(t, 8, 4),
        "decoder_norm.weight": like(t, 4),
    }
    return {"model": t | decoder(t) | cross, "optimizer": OPTIMIZER, "epoch": 3, "args": ARGS}


def colormae(t: Tensors) -> dict[str, Any]:
    return mmpretrain(t)


def deepspeed(t: Tensors) -> dict[str, Any]:
    shapes = OrderedDict((name, value.shape) for name, value in t.items())
    return {"module": t, "buffer_names": [], "param_shapes": [shapes], "optimizer": None,
            "ds_config": {"zero_optimization": {"stage": 1}}, "ds_version": "0.15.0", "dp_world_size": 8}  # fmt: skip


def averaged(t: Tensors) -> dict[str, Any]:
    return {"n_averaged": torch.tensor(7), **prefixed(t, "module.")}


def ijepa(t: Tensors) -> dict[str, Any]:
    context = {k: v + 0.01 for k, v in t.items()}
    return {
        "encoder": prefixed(context, "module."), "target_encoder": prefixed(t, "module."),
        "predictor": {"module.predictor_embed.weight": like(t, 4, 4), "module.mask_token": like(t, 1, 1, 4)},
        "opt": OPTIMIZER, "scaler": None, "epoch": 2, "loss": 0.1, "batch_size": 8, "world_size": 1, "lr": 0.1,
    }  # fmt: skip


CLIP_TOWER = (*CLIP, (r"blocks\.(\d+)\.ls([12])\.gamma", r"transformer.resblocks.\1.ls_\2.gamma"))


def pe(t: Tensors) -> dict[str, Any]:
    state = renamed(t, *CLIP_TOWER)
    state["positional_embedding"] = state.pop("pos_embed")[0]
    if "cls_token" in state:
        state["class_embedding"] = state.pop("cls_token")[0, 0]
    return state


def pe_core(t: Tensors) -> dict[str, Any]:
    pool = {"attn_pool.probe": like(t, 1, 1, 48), "attn_pool.attn.in_proj_weight": like(t, 4, 4),
            "attn_pool.layernorm.weight": like(t, 4), "proj": like(t, 4, 4)}  # fmt: skip
    text = {"transformer.resblocks.0.ln_1.weight": like(t, 4), "positional_embedding": like(t, 4, 4),
            "token_embedding.weight": like(t, 4, 4), "ln_final.weight": like(t, 4),
            "text_projection": like(t, 4, 4), "logit_scale": like(t)}  # fmt: skip
    return prefixed(pe(t) | pool, "visual.") | text


HF_CLIP = (
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embedding.\1"),
    (r"norm_pre\.(.*)", r"pre_layrnorm.\1"),
    (r"norm\.(.*)", r"post_layernorm.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(.*)", r"encoder.layers.\1.self_attn.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"encoder.layers.\1.mlp.\2"),
)


def hf_clip(t: Tensors) -> dict[str, Any]:
    state = renamed(split_qkv(t), *HF_CLIP)
    state["embeddings.position_embedding.weight"] = state.pop("pos_embed")[0]
    if "cls_token" in state:
        state["embeddings.class_embedding"] = state.pop("cls_token")[0, 0]
    else:
        state |= {"head.probe": like(t, 1, 1, 48), "head.attention.in_proj_weight": like(t, 4, 4)}
    text = {"text_model.embeddings.token_embedding.weight": like(t, 4, 4), "logit_scale": like(t)}
    return prefixed(state, "vision_model.") | text


@dataclass(frozen=True)
class Abroad:
    """A file that is read."""

    write: Callable[[Tensors], dict[str, Any]]
    format: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the specification that differ from a plain ViT's."""
    which: tuple[str, ...] = ()
    """What must be said with --which; the first gives the tensors."""
    extras: tuple[str, ...] = ()
    note: str = ""


MAE = {"position_rule": "bicubic"}
OFFSET = {"position_rule": "bicubic-offset"}
TIMM = {"position_rule": "bicubic-antialias"}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
    "position_rule": "bicubic-antialias", "activation": "quick_gelu", "norm_eps": 1e-5,
    "pre_norm": True, "patch_bias": False,
}  # fmt: skip
PATCHES = {"class_token": False, "pool": "avg"}
PE = {**HALF, "position": "absolute+rotary", "rotation": "stepped", "position_rule": "bilinear",
      "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5}  # fmt: skip
UNDER = "stands under"

READ = {
    "I-JEPA": Abroad(ijepa, "ijepa", {**TIMM, **PATCHES, "position_rows_for_prefix": True}),
    "Pixio": Abroad(pixio, "mae", {**MAE, "class_tokens": 8}),
    "CrossMAE": Abroad(crossmae, "mae", MAE, extras=("decoder", "mask token")),
    "ColorMAE": Abroad(colormae, "mmpretrain", MAE, extras=("pre-training parts",)),
    "UM-MAE ViT": Abroad(lambda t: {"model": t | decoder(t), "args": ARGS}, "mae", MAE),
    "Web-SSL MAE": Abroad(dict, "mae", MAE),
    "Web-SSL DINO": Abroad(dinov2, "dinov2", {**OFFSET, "layer_scale": True, "mlp": "swiglu", "mlp_dim": 128}),
    "Franca": Abroad(dinov2, "dinov2", {**OFFSET, "layer_scale": True}),
    "Franca teacher": Abroad(lambda t: {"teacher": prefixed(dinov2(t), "backbone.")}, "dinov2",
                             {**OFFSET, "layer_scale": True}),
    "lightly MAE": Abroad(lightly_mae, "mae", MAE, extras=("decoder",), note=UNDER),
    "lightly DINO": Abroad(lightly_dino, "mae", MAE, which=("teacher", "student"), extras=("teacher_head",)),
    "lightly SimCLR": Abroad(lightly_simple, "mae", MAE, extras=("projection_head",), note="'state_dict: backbone.'"),
    "solo-learn": Abroad(solo_learn, "mae", MAE, which=("student", "teacher"), extras=("projector",)),
    "stable-pretraining": Abroad(stable_pretraining, "mae", MAE, which=("teacher", "student")),
    "torch.compile": Abroad(lambda t: {"model": prefixed(t, "_orig_mod.")}, "mae", MAE),
    "DDP of torch.compile": Abroad(lambda t: {"state_dict": prefixed(t, "module._orig_mod.")}, "mae", MAE),
    "compiled inside": Abroad(lambda t: {"state_dict": prefixed(t, "model._orig_mod.")}, "mae", MAE, note=UNDER),
    "AveragedModel": Abroad(averaged, "mae", MAE, note=UNDER),
    "DeepSpeed": Abroad(deepspeed, "mae", MAE),
    "wrapper backbone": Abroad(lambda t: {"backbone": t, "epoch": 3}, "mae", MAE, note="'backbone'"),
    "wrapper encoder": Abroad(lambda t: {"encoder": t}, "mae", MAE, note="'encoder'"),
    "wrapper net": Abroad(lambda t: {"net": prefixed(t, "module.")}, "mae", MAE, note="'net'"),
    "wrapper state_dict_ema": Abroad(lambda t: {"state_dict_ema": t}, "mae", MAE, note="'state_dict_ema'"),
    "prefix encoder": Abroad(lambda t: {"model": prefixed(t, "encoder.")}, "mae", MAE, note=UNDER),
    "prefix backbone": Abroad(lambda t: prefixed(t, "backbone."), "mae", MAE, note=UNDER),
    "prefix net": Abroad(lambda t: {"state_dict": prefixed(t, "model.net.")}, "mae", MAE, note=UNDER),
    "timm GAP": Abroad(lambda t: t | {"head.weight": like(t, 10, 48)}, "timm", {**TIMM, **PATCHES}),
    "timm GAP bare": Abroad(dict, "timm", {**TIMM, **PATCHES}),
    "timm SigLIP": Abroad(lambda t: t | {"attn_pool.latent": like(t, 1, 1, 48)}, "timm", {**TIMM, **PATCHES},
                          extras=("attentional pooling",)),
    "SigLIP": Abroad(hf_clip, "hf-clip", {**TIMM, **PATCHES, **HALF, "activation": "gelu_tanh"},
                     extras=("attentional pooling", "text tower")),
    "PE core": Abroad(pe_core, "pe", PE, extras=("attentional pooling", "text tower", "projection")),
    "PE spatial": Abroad(lambda t: {"state_dict": prefixed(pe(t), "module.visual.")}, "pe",
                         {**PE, "final_norm": "none", "layer_scale": True}),
    "PE G": Abroad(lambda t: {"weights": pe(t)}, "pe", {**PE, **PATCHES, "final_norm": "none", "layer_scale": True}),
}  # fmt: skip


def of(*names: str) -> Callable[[Tensors], dict[str, Any]]:
    """Return a writer of a file with tensors of these names."""
    return lambda t: {name: like(t, 2, 2) for name in names}


REFUSED: dict[str, tuple[Callable[[Tensors], dict[str, Any]], str]] = {
    "data2vec 2": (lambda t: {"model": {**of("modality_encoders.IMAGE.local_encoder.proj.weight",
                   "blocks.0.attn.qkv.weight", "blocks.0.norm1.weight")(t)}, "cfg": {}},
                   r"a data2vec 2\.0 checkpoint: its blocks norm after each addition"),
    "AIM v1": (of("preprocessor.patchifier.proj.weight", "trunk.blocks.0.norm_1.weight",
                  "trunk.post_trunk_norm.weight"), "an AIM v1 checkpoint"),
    "RADIO": (lambda t: {"state_dict": of("radio_model.model.patch_generator.embedder.weight",
              "radio_model.input_conditioner.norm_mean", "radio_model.model.blocks.0.norm1.weight")(t)},
              r"a RADIO checkpoint .*timm:vit_base_patch16_radio_v3\.c_radio"),
    "hybrid ViT": (of("cls_token", "patch_embed.backbone.stem.conv.weight", "patch_embed.proj.weight",
                   "blocks.0.norm1.weight"), r"a hybrid ViT of timm's.*timm:NAME"),
    "PVT": (of("patch_embed1.proj.weight", "block1.0.attn.q.weight"), "a PVT, as UM-MAE trains it"),
    "HF ConvNeXt": (of("convnext.encoder.stages.0.layers.0.dwconv.weight"), "Hugging Face's layout of a network"),
    "HF BEiT": (of("beit.encoder.layer.0.lambda_1"), "Hugging Face's BEiT"),
    "LoRA": (of("base_model.model.encoder.layer.0.query.lora_A.weight"), r"an adapter \(LoRA\)"),
    "language model": (of("model.layers.0.self_attn.q_proj.weight"), "a language model"),
    "optimizer": (lambda t: {"state": {0: {"exp_avg": like(t, 2)}}, "param_groups": []}, "the state of an optimizer"),
    "head": (of("module.linear.weight", "module.linear.bias"), "a classifier's head alone"),
    "unknown": (of("conv_stem.weight", "blocks.0.0.conv_dw.weight", "a.weight", "b.weight", "c.weight"),
                r"no known format; .*if timm has this network"),
}  # fmt: skip
