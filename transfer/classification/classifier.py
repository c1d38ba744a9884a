"""The network that fine-tuning trains: the encoder at the task's resolution, pooling, a new head."""

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from mimbench.system.errors import UserError
from mimbench.vit.network import Vit, build_vit, load_encoder
from mimbench.vit.positions import resize_table
from mimbench.vit.weights import VitWeights

HEAD_STD = 2e-5

Pool = Literal["avg", "cls"]


def at_size(weights: VitWeights, size: int) -> VitWeights:
    """Return the weights with the position table resized for square images, by the family's rule."""
    spec = weights.spec
    if size % spec.patch_size:
        raise UserError(
            f"image_size {size} does not divide into patches of {spec.patch_size}; "
            f"use a multiple, for example {max(1, round(size / spec.patch_size)) * spec.patch_size}"
        )
    grid = (size // spec.patch_size, size // spec.patch_size)
    if grid == spec.grid or spec.position != "absolute":
        return weights
    table = resize_table(
        weights.tensors["pos_embed"],
        grid=spec.grid,
        to=grid,
        prefix=spec.position_prefix,
        rule=spec.position_rule,
    )
    return replace(
        weights, spec=replace(spec, grid=grid), tensors={**weights.tensors, "pos_embed": table}
    )


def build_classifier(
    weights: VitWeights, classes: int, *, pool: Pool, drop_path: float, seed: int
) -> tuple[Vit, list[str]]:
    """Return the classifier and the names of the checkpoint's tensors that it does not take.

    With average pooling a new norm stands after the pooling and the encoder's final norm is dropped
    (MAE); with the class token the final norm stays. The head is new.
    """
    spec = weights.spec
    if pool == "cls" and not spec.class_token:
        raise UserError(f"{weights.name}: no class token to pool; use pool: avg")
    fresh_norm = pool == "avg" and spec.final_norm == "norm"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_vit(
            spec,
            drop_path=drop_path,
            num_classes=classes,
            pool="avg" if pool == "avg" else "token",
            fc_norm=pool == "avg",
        )
        init_head(model.head)
    fresh = {"head.weight", "head.bias"}
    dropped: list[str] = []
    if fresh_norm:
        fresh |= {"fc_norm.weight", "fc_norm.bias"}
        dropped = ["norm.weight", "norm.bias"]
    elif pool == "cls" and spec.final_norm == "fc_norm":
        fresh |= {"norm.weight", "norm.bias"}
        dropped = ["fc_norm.weight", "fc_norm.bias"]
    kept = weights
    if dropped:
        kept = replace(
            weights,
            spec=replace(spec, final_norm="none"),
            tensors={k: v for k, v in weights.tensors.items() if k not in dropped},
        )
    load_encoder(model, kept, fresh=frozenset(fresh))
    return model, dropped


def init_head(head: nn.Module) -> None:
    """Start the head near zero: every class equally likely."""
    if not isinstance(head, nn.Linear):
        raise TypeError(f"the head is a {type(head).__name__}, expected a linear layer")
    nn.init.trunc_normal_(head.weight, std=HEAD_STD)
    nn.init.zeros_(head.bias)
