"""Doubts that values raise where names and shapes are right: reasons to look, not to refuse."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mimbench.checkpoints.reading.plain import is_fixed_table
from mimbench.model import Spec
from mimbench.vit.weights import VitSpec

FIXED_TABLES = ("mae", "hpm", "automae")
HUGE = 1e4


def doubts(spec: Spec, tensors: Mapping[str, Tensor], family: str) -> list[str]:
    """Return what looks wrong in tensors that fit the specification.

    It finds norms whose weight and bias are exchanged, constant or enormous matrices, equal blocks,
    a position table whose rows are shuffled, and untrained weights. It cannot find exchanged
    blocks, or queries exchanged with keys: only features show those.
    """
    found = [*_norms(tensors), *_matrices(tensors)]
    if not isinstance(spec, VitSpec):
        return found
    found += _equal_blocks(spec, tensors)
    if spec.has_table and "pos_embed" in tensors:
        found += _positions(spec, tensors["pos_embed"], family)
    biases = [t for n, t in tensors.items() if n.endswith("bias")]
    if biases and not any(bool(t.any()) for t in biases):
        found.append("every bias is zero: the weights look untrained")
    return found


def _norms(tensors: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, weight in tensors.items():
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if "norm" not in name or not name.endswith(".weight") or bias is None:
            continue
        # a norm's weights keep one sign; values around zero are what biases look like
        if abs(float(weight.mean())) < 0.2 * float(weight.std()):
            found.append(f"{name} lies around zero as a bias does")
        elif float(weight.abs().max()) == 0.0:
            found.append(f"{name} is zero: the norm passes nothing on")
        elif abs(float(bias.mean()) - 1) < 0.1 and float(bias.std()) < 0.1:
            found.append(f"{name.removesuffix('weight')}bias lies around one as a weight does")
    return found


def _matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    found = []
    for name, tensor in tensors.items():
        low, high = (float(v) for v in torch.aminmax(tensor))
        if tensor.dim() > 1 and low == high and not name.endswith(("token", "bias_table")):
            found.append(f"every value of {name} is {low:g}")
        elif max(abs(low), abs(high)) > HUGE:
            found.append(f"{name} reaches {max(abs(low), abs(high)):.3g}")
    return found


def _equal_blocks(spec: VitSpec, tensors: Mapping[str, Tensor]) -> list[str]:
    seen: dict[float, int] = {}
    found = []
    for i in range(spec.depth):
        weight = tensors[f"blocks.{i}.mlp.fc1.weight"]
        key = float(weight.double().sum())
        other = seen.setdefault(key, i)
        if other != i and torch.equal(weight, tensors[f"blocks.{other}.mlp.fc1.weight"]):
            found.append(f"blocks {other} and {i} hold the same weights")
    return found


def _positions(spec: VitSpec, table: Tensor, family: str) -> list[str]:
    if family in FIXED_TABLES and not is_fixed_table(table):
        return ["pos_embed is not the fixed sine-cosine table that this family trains on"]
    if is_fixed_table(table) or min(spec.grid) < 4:
        return []
    rows = F.normalize(table[0, spec.position_prefix :] - table[0].mean(dim=0), dim=-1)
    image = rows.unflatten(0, spec.grid)
    near = (image[:, 1:] * image[:, :-1]).sum(-1).mean()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    far = (rows * rows[order]).sum(-1).mean()
    if float(near - far) < 0.02:
        return [
            "neighbouring rows of pos_embed are no more alike than distant ones: shuffled or untrained"
        ]
    return []
