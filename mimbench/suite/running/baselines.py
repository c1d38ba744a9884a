"""What a sound checkpoint must beat, and what its tensors must not look like."""

from collections.abc import Callable
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from mimbench.model import Weights
from mimbench.networks.kinds import random_twin
from mimbench.vit.weights import VitWeights

TWIN = "random weights"
PERMUTED = 200
"""Random orders of the position table that the true one is held against."""

HINTS = ("its position table transposed", "its red and blue exchanged")
"""Baselines that a sound checkpoint may tie with, where place or colour says nothing: they tell only if
they win."""

Change = Callable[[], dict[str, Tensor]]


def baselines_of(weights: Weights) -> dict[str, Change]:
    """Return name -> replaced tensors, the most telling baselines first.

    Only a plain ViT can be rearranged without a change of shape: other networks meet their twin.
    """
    baselines: dict[str, Change] = {TWIN: lambda: dict(random_twin(weights.spec, seed=0).tensors)}
    return baselines | _rearranged(weights) if isinstance(weights, VitWeights) else baselines


def faults_of(weights: Weights) -> list[str]:
    """Return what must not be, whatever a k-NN says."""
    if not isinstance(weights, VitWeights):
        return []
    return untouched(weights) + position_faults(weights)


def _rearranged(weights: VitWeights) -> dict[str, Change]:
    depth = weights.spec.depth
    baselines: dict[str, Change] = {}
    for name, order in _orders(depth).items():
        baselines[f"its blocks {name}"] = partial(_reorder, weights, order)
    for order in list(permutations(range(3)))[1:]:
        letters = "".join("qkv"[i] for i in order)
        baselines[f"its attention read as {letters}"] = partial(_reorder_qkv, weights, order)
    baselines["its patch kernels transposed"] = partial(_transpose_patches, weights)
    if weights.spec.position == "absolute" and weights.spec.grid[0] == weights.spec.grid[1]:
        baselines[HINTS[0]] = partial(_transpose_positions, weights)
    baselines[HINTS[1]] = partial(_exchange_colours, weights)
    return baselines


def _orders(depth: int) -> dict[str, list[int]]:
    if depth < 2:
        return {}
    whole = list(range(depth))
    pairs = [i + 1 if i % 2 == 0 and i + 1 < depth else i - i % 2 for i in whole]
    shuffled = torch.randperm(depth, generator=torch.Generator().manual_seed(depth)).tolist()
    orders = {
        "reversed": whole[::-1],
        "shuffled": shuffled,
        "rotated": whole[depth // 2 :] + whole[: depth // 2],
        "swapped in pairs": pairs,
        "with the first two swapped": [1, 0, *whole[2:]],
    }
    return {name: order for name, order in orders.items() if order != whole}


def _reorder(weights: VitWeights, order: list[int]) -> dict[str, Tensor]:
    return {
        f"blocks.{to}.{name.split('.', 2)[2]}": tensor
        for to, source in enumerate(order)
        for name, tensor in weights.tensors.items()
        if name.startswith(f"blocks.{source}.")
    }


def _reorder_qkv(weights: VitWeights, order: tuple[int, ...]) -> dict[str, Tensor]:
    thirds = {n: t.chunk(3) for n, t in weights.tensors.items() if ".attn.qkv." in n}
    return {name: torch.cat([parts[i] for i in order]) for name, parts in thirds.items()}


def _transpose_patches(weights: VitWeights) -> dict[str, Tensor]:
    name = "patch_embed.proj.weight"
    return {name: weights.tensors[name].transpose(2, 3).contiguous()}


def _transpose_positions(weights: VitWeights) -> dict[str, Tensor]:
    table, first = weights.tensors["pos_embed"], weights.spec.position_prefix
    cells = table[:, first:].unflatten(1, weights.spec.grid).transpose(1, 2).flatten(1, 2)
    return {"pos_embed": torch.cat([table[:, :first], cells], dim=1)}


def _exchange_colours(weights: VitWeights) -> dict[str, Tensor]:
    name = "patch_embed.proj.weight"
    return {name: weights.tensors[name].flip(1)}


def untouched(weights: VitWeights) -> list[str]:
    """Return faults for parts that hold exactly what a fresh model starts from."""
    parts = {
        "norms are all one and zero": ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
        "attention biases are all zero": ("attn.qkv.bias", "attn.proj.bias"),
        "MLP biases are all zero": ("mlp.fc1.bias", "mlp.fc2.bias"),
    }
    faults = []
    for text, names in parts.items():
        blocks = [i for i in range(weights.spec.depth) if _fresh(weights, f"blocks.{i}.", names)]
        if blocks:
            faults.append(
                f"the {text} in block {', '.join(map(str, blocks))}: never trained or never loaded"
            )
    return faults


def _fresh(weights: VitWeights, at: str, names: tuple[str, ...]) -> bool:
    tensors = {n: weights.tensors[at + n] for n in names if at + n in weights.tensors}
    return bool(tensors) and all(
        bool((t == float("norm" in n and n.endswith("weight"))).all()) for n, t in tensors.items()
    )


def position_faults(weights: VitWeights) -> list[str]:
    """Return faults of an absolute position table: constant, or without regard to the grid."""
    spec = weights.spec
    if spec.position != "absolute" or min(spec.grid) < 3:
        return []
    table = weights.tensors["pos_embed"][0, spec.position_prefix :].double()
    if float(table.std(dim=0).max()) == 0:
        return ["the position table is the same everywhere: positions are lost"]
    centred = torch.nn.functional.normalize(table - table.mean(dim=0), dim=1)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(table), generator=generator) for _ in range(PERMUTED)]
    chance = torch.stack([_closeness(centred[order], spec.grid) for order in orders])
    if _closeness(centred, spec.grid) <= chance.max():
        return [
            "neighbours in the position table are no more alike than strangers: its rows are shuffled"
        ]
    return []


def _closeness(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean similarity of neighbouring positions."""
    cells = rows.unflatten(0, grid)
    right = (cells[:, 1:] * cells[:, :-1]).sum(dim=-1)
    down = (cells[1:] * cells[:-1]).sum(dim=-1)
    return torch.cat([right.flatten(), down.flatten()]).mean()
