"""A detector of a few thousand weights and what it leaves (shared by tests)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.task import Machine
from mimbench.vit.weights import VitSpec
from transfer.detection.vitdet import Config

SPEC = VitSpec(embed_dim=24, depth=2, num_heads=3, mlp_dim=48, patch_size=8, grid=(4, 4))


def small(coco: Path, **changes: Any) -> Config:
    """Four steps of four pictures through a detector of a few thousand weights."""
    return Config(
        **{
            "data": coco,
            "image_size": 64,
            "patch_size": None,
            "window": 4,
            "global_blocks": 1,
            "batch": 4,
            "images": 16,
            "learning_rate": 1e-3,
            "warmup": 0.1,
            "drops": (0.5, 0.8),
            "drop_path": 0.2,
            "precision": "fp32",
            "pyramid_channels": 16,
            "anchor_scale": 4.0,
            "box_convs": 1,
            "box_width": 16,
            "mask_convs": 1,
            "proposals": 16,
            "regions": 8,
            "eval_every": 0,
            "machine": Machine(device="cpu", workers=0, max_batch=4),
            **changes,
        }
    )


def final(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoints/model_final.pth", weights_only=True)["model"]


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert first.keys() == second.keys()
    return all((first[n] - second[n]).abs().max() <= tolerance for n in first)
