"""Public result files in small: the very layout and some of the numbers that their authors published."""

import json
from typing import Any

EP_HEADER = (
    "family,method,arch,pretrain,eval,image_size,lp,lp_gap,ep,ep_queries,ep_variant,model,loader,"
    "pretrain_tag,finetune,lp_variant,lp_log,ep_log,notes,verified,amp,waiting,gap_reason,knn,knn_k,"
    "knn_T,knn_log,extra_flags"
)
EP = "\n".join(
    [
        EP_HEADER,
        "MIM,MAE,ViT-B/16,IN-1K,IN-1K,224,67.78,no,75.46,32,ep,vit_base_patch16,,,"
        "vit_base_patch16_224.mae,cls,logs/mae_base/lp.txt,logs/mae_base/ep.txt,,yes,,,,35.57,20,0.07,"
        "logs/mae_base/knn.txt,",
        'VLM,SigLIP,ViT-L/16,"WebLI (10B imgs, 109 langs)",IN-1K,256,84.11,yes,85.86,32,ep,'
        "ViT-L-16-SigLIP-256,openclip,webli,,pos,logs/siglip_vitl/lp.txt,logs/siglip_vitl/ep.txt,"
        '"LP peaks early, and declines.",yes,,,attn_pool,72.92,15,0.07,logs/siglip_vitl/knn.txt,',
        "GEN,DiT,DiT-XL/2,IN-1K,IN-1K,256,32.70,yes,57.00,128,ep,DiT-XL/2,dit,,,pos,logs/dit_xl/lp.txt,"
        "logs/dit_xl/ep.txt,,yes,,,no_cls,5.25,50,0.07,logs/dit_xl/knn.txt,",
        "",
    ]
)
"""Of efficient-probing's results.csv; notes shortened."""

TIMM_HEADER = "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation"
TIMM = "\n".join(
    [
        TIMM_HEADER,
        'eva_giant_patch14_560.m30m_ft_in22k_in1k,89.786,10.214,98.992,1.008,"1,014.45",560,1.000,bicubic',
        "convnextv2_base.fcmae_ft_in1k,85.474,14.526,97.384,2.616,88.72,288,1.000,bicubic",
        "beit_large_patch16_224.in22k_ft_in22k_in1k,87.478,12.522,98.304,1.696,304.43,224,0.900,bicubic",
        "",
    ]
)
"""Of timm's results-imagenet.csv."""


def record(**changes: Any) -> dict[str, Any]:
    """Return a record as VisBench writes it."""
    return {
        "backbone": "dino_vitb16",
        "backbone_key": "timm/vit_base_patch16_224/dino/224",
        "task": "semantic_segmentation",
        "level": "high_level",
        "dataset": "VOC2012",
        "split": "val",
        "dataset_fingerprint": "9555d63a9e12b035",
        "dataset_params": {"image_size": 224},
        "pooling": "cls",
        "pooling_requested": "default",
        "feature_mode": "dense_only",
        "finetune": None,
        "layers": None,
        "metrics": {"miou": 0.6184},
        "schema_version": 9,
        "seed": 0,
        "task_params": {"epochs": 40, "protocol": "visbench_semantic_seg"},
        "timestamp": "2026-09-18T20:21:05+00:00",
        "visbench_version": "0.27.0",
        **changes,
    }


def visbench(*records: dict[str, Any]) -> str:
    """Return records as JSON lines."""
    return "".join(f"{json.dumps(line)}\n" for line in records)
