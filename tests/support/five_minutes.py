"""What docs/start/five-minutes.md finds on its reader's disk: one network in the forms that trainings leave."""

import json
from pathlib import Path

import torch
from safetensors.torch import save

from mimbench.vit.weights import VitWeights
from tests.support.checkpoint_layouts import LAYOUTS

HUB = "you/your-vit"
"""The name of a repository on a hub."""


def hub_files(weights: VitWeights) -> dict[str, bytes]:
    """Return a network as the Hugging Face hub and its `Trainer` keep it."""
    spec = weights.spec
    config = {
        "model_type": "vit_mae",
        "hidden_size": spec.embed_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.mlp_dim,
        "image_size": spec.patch_size * spec.grid[0],
        "patch_size": spec.patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    tensors = LAYOUTS["hf-vitmae"].write(dict(weights.tensors))
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save({k: v.contiguous() for k, v in tensors.items()}),
    }


def lay_out(place: Path, weights: VitWeights) -> None:
    """Write a plain file, a Lightning checkpoint and a folder of Hugging Face's `Trainer`."""
    torch.save(LAYOUTS["mae-training"].write(dict(weights.tensors)), place / "ckpt.pth")
    lightning = place / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    lightning.parent.mkdir(parents=True)
    state = {f"model.backbone.{k}": v for k, v in weights.tensors.items()}
    head = {"model.head.weight": torch.zeros(10, weights.spec.embed_dim)}
    torch.save({"epoch": 9, "global_step": 930, "state_dict": state | head}, lightning)
    folder = place / "trainer-out" / "checkpoint-500"
    folder.mkdir(parents=True)
    for name, content in hub_files(weights).items():
        (folder / name).write_bytes(content)
