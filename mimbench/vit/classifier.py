"""A plain ViT as a classifier: at the task's resolution, pooled, with a new head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import nn

from mimbench.system.errors import UserError
from mimbench.vit.network import Vit, build_vit, load_encoder
from mimbench.vit.positions import resize_table
from mimbench.vit.relative import resize_bias
from mimbench.vit.weights import VitWeights

Pool = Literal["avg", "cls"]


def at_size(weights: VitWeights, size: int) -> VitWeights:
    """Return the weights with position tables resized for square images, by the family's rule."""
    spec = weights.spec
    if size % spec.patch_size:
        raise UserError(
            f"image_size {size} does not divide into patches of {spec.patch_size}; "
            f"use a multiple, for example {max(1, round(size / spec.patch_size)) * spec.patch_size}"
        )
    grid = (size // spec.patch_size, size // spec.patch_size)
    if grid == spec.grid:
        return weights
    tensors = dict(weights.tensors)
    for name, table in weights.tensors.items():
        if name == "pos_embed":
            tensors[name] = resize_table(
                table,
                grid=spec.grid,
                to=grid,
                prefix=spec.position_prefix,
                rule=spec.position_rule,
            )
        elif name.endswith("relative_position_bias_table"):
            tensors[name] = resize_bias(table, grid=spec.grid, to=grid)
    return replace(weights, spec=replace(spec, grid=grid), tensors=tensors)


def build_classifier(
    weights: VitWeights,
    classes: int,
    *,
    pool: Pool,
    drop_path: float,
    init_head: Callable[[nn.Module], None],
) -> tuple[Vit, list[str]]:
    """Return the classifier and the names of the checkpoint's tensors that it does not take.

    With average pooling a new norm stands after the pooling and the encoder's final norm is dropped
    (MAE); with the class token the final norm stays. The head is new.
    """
    spec = weights.spec
    if pool == "cls" and not spec.class_token:
        raise UserError(f"{weights.name}: no class token to pool; use pool: avg")
    fresh_norm = pool == "avg" and spec.final_norm == "norm"
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
