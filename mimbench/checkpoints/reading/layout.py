"""Layouts: what a checkpoint file holds, and how its names become canonical ones."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.model import Spec
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""

ROLES = ("student", "teacher")

PLAIN = ("model", "state_dict", "module", "")
"""Containers of a file's only network, the likeliest first."""

Tensors = dict[str, Tensor]


class NoNetworkError(UserError):
    """A file whose networks lie where no format expects them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user says where the file cannot."""

    which: str | None = None
    num_heads: int | None = None
    activation: str | None = None
    """For formats whose files do not hold it."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a format makes of a file; tensors that are not canonical yet are faults to report."""

    spec: Spec
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, int] = field(default_factory=dict)
    """Group of tensors that are no part of the encoder -> count."""
    notes: tuple[str, ...] = ()
    which: str = ""
    networks: tuple[str, ...] = ()
    """Every network that the file offers under `which`."""
    heads_asked: bool = False
    """The number of heads is the user's word, not the format's."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A file's content as plain data: nothing in here has run or can run."""

    path: Path
    top: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The safetensors header's own strings."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """`config.json` of a folder."""
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """`preprocessor_config.json` of a folder."""
    open_clip: Mapping[str, Any] = field(default_factory=dict)
    """`open_clip_config.json` of a folder."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the file itself."""

    @cached_property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Container -> its entries with wrappers stripped; '' is the top level itself."""
        found: dict[str, dict[str, Any]] = {}
        if any(isinstance(value, Tensor) for value in self.top.values()):
            inner = {k: v for k, v in self.top.items() if isinstance(k, str) and _belongs(k, v)}
            found[""] = strip_wrappers(inner)
        for key, value in self.top.items():
            if isinstance(key, str) and _is_state(value):
                found[key] = strip_wrappers(value)
        for role in ROLES:
            for state in list(found.values()):
                if role not in found and any(name.startswith(f"{role}.") for name in state):
                    found[role] = strip_wrappers(strip_prefix(state, f"{role}."))
        return found

    @cached_property
    def names(self) -> frozenset[str]:
        """Every tensor's name in any network."""
        return frozenset(name for network in self.networks.values() for name in network)

    def has(self, pattern: str) -> bool:
        """Return whether a tensor's whole name matches the pattern."""
        match = re.compile(pattern).fullmatch
        return any(match(name) for name in self.names)


def _belongs(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) or "." in key


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(item, Tensor) for item in value.values())
    )


def strip_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state without the wrappers that every name carries."""
    out = dict(state)
    while wrapper := next((w for w in WRAPPERS if out and all(k.startswith(w) for k in out)), None):
        out = {name.removeprefix(wrapper): value for name, value in out.items()}
    return out


def strip_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def choose(
    raw: Raw, offers: Mapping[str, Sequence[str]], which: str | None
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Return the network asked for (or the first offered that exists), and every one there is.

    Args:
        raw: The file.
        offers: Network's name -> containers that may hold it, the family's default first.
        which: The user's choice.
    """
    present = {
        name: container
        for name, containers in offers.items()
        for container in reversed(containers)
        if container in raw.networks
    }
    if not present:
        raise NoNetworkError(f"{raw.path}: holds no network; its entries are {first_few(raw.top)}")
    chosen = which or next(iter(present))
    if chosen not in present:
        raise UserError(
            f"{raw.path}: holds no network '{chosen}'; --which can be {', '.join(present)}"
        )
    several = len(present) > 1
    return (
        chosen if several else "",
        raw.networks[present[chosen]],
        tuple(present) if several else (),
    )


Table = Sequence[tuple[str, str]]
"""(pattern of a whole name, replacement or group); the first that matches decides."""


def rename(state: Mapping[str, Any], names: Table, extras: Table) -> tuple[Tensors, dict[str, int]]:
    """Return the tensors under their new names, and the number of extra tensors in each group.

    Args:
        state: Tensors as the file names them.
        names: Names to change; a name without a rule stays, and is a fault if not canonical.
        extras: Names that are known not to belong to the encoder, with their group.
    """
    rules = [(re.compile(pattern), into) for pattern, into in names]
    groups = [(re.compile(pattern), group) for pattern, group in extras]
    out: Tensors = {}
    counts: dict[str, int] = {}
    for name, value in state.items():
        group = next((g for pattern, g in groups if pattern.fullmatch(name)), None)
        if group is not None:
            counts[group] = counts.get(group, 0) + 1
            continue
        hit = next(((m, into) for p, into in rules if (m := p.fullmatch(name))), None)
        new = hit[0].expand(hit[1]) if hit else name
        if not isinstance(value, Tensor):
            raise UserError(f"'{name}' is a {type(value).__name__}, expected a tensor")
        if new in out:
            raise UserError(f"'{name}' and another tensor both stand for '{new}'")
        out[new] = value
    return out, counts


def container_extras(raw: Raw, used: Iterable[str]) -> dict[str, int]:
    """Return the number of tensors in each top-level entry that is no network of the encoder."""
    skip = set(used)
    out: dict[str, int] = {}
    for key, value in raw.top.items():
        if key not in skip and isinstance(value, Mapping) and (count := _count(value)):
            out[str(key)] = count
    return out


def _count(value: Any) -> int:
    """Return the number of tensors in nested mappings, each mapping once."""
    count, waiting, seen = 0, [value], set()
    while waiting:
        item = waiting.pop()
        count += isinstance(item, Tensor)
        if isinstance(item, Mapping) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values()
    return count


def per_block(tensors: Tensors, parts: Sequence[str], fuse: Callable[..., Tensors]) -> Tensors:
    """Return the tensors with `parts` of every block replaced by what `fuse` makes of them.

    Args:
        tensors: Tensors by name; those of block i are named `blocks.i.<part>`.
        parts: The parts to take out of each block that has the first of them.
        fuse: Called with the parts (None where absent); returns new parts by name.
    """
    out = dict(tensors)
    for name in tensors:
        if not name.startswith("blocks.") or not name.endswith(f".{parts[0]}"):
            continue
        at = name.removesuffix(parts[0])
        values = [out.pop(f"{at}{part}", None) for part in parts]
        out |= {f"{at}{part}": value for part, value in fuse(*values).items()}
    return out


def joined(*parts: Tensor) -> Tensor:
    """Return parts of one layer as one tensor, row after row; parts of unlike shape are a fault."""
    shapes = [tuple(part.shape) for part in parts]
    if len({(len(shape), shape[1:]) for shape in shapes}) > 1 or not shapes[0]:
        raise UserError(f"parts of one layer do not fit together: shapes {shapes}")
    return torch.cat([part.to(parts[0].dtype) for part in parts])


def join_biases(q: Tensor, v: Tensor | None) -> Tensors:
    """Return `attn.qkv.bias` of a query and a value bias; a key bias would change nothing."""
    if v is None:
        return {"attn.q_bias": q}
    return {"attn.qkv.bias": joined(q, torch.zeros_like(q), v)}


def pack(kind: str) -> Callable[..., Tensors]:
    """Return what joins gate and value of a gated MLP, `mlp.gate` and `mlp.up`, into `mlp.fc1`."""

    def join(gate: Tensor, up: Tensor | None) -> Tensors:
        return {f"mlp.gate.{kind}": gate} if up is None else {f"mlp.fc1.{kind}": joined(gate, up)}

    return join


def pack_gates(tensors: Tensors) -> Tensors:
    """Return the tensors with gate and value of every MLP joined, the gate first."""
    for kind in ("weight", "bias"):
        tensors = per_block(tensors, [f"mlp.gate.{kind}", f"mlp.up.{kind}"], pack(kind))
    return tensors


def fuse_qkv(tensors: Tensors, *, prefix: str = "attn.") -> Tensors:
    """Return the tensors with separate query, key and value projections joined into `attn.qkv`.

    A key bias that does not exist is zero: it would shift all logits of a query equally.
    """

    def weight(q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensors:
        if k is None or v is None:
            return {"attn.q.weight": q}
        return {"attn.qkv.weight": joined(q, k, v)}

    def bias(q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensors:
        if v is None:
            return {"attn.q.bias": q}
        return {"attn.qkv.bias": joined(q, torch.zeros_like(q) if k is None else k, v)}

    out = per_block(tensors, [f"{prefix}{c}.weight" for c in "qkv"], weight)
    return per_block(out, [f"{prefix}{c}.bias" for c in "qkv"], bias)
