"""Inert stand-ins for the few foreign classes in checkpoints: their data is kept, nothing of theirs runs."""

import argparse
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimbench.system.errors import UserError

NUMBER = re.compile(r"[biufSU]\d{1,5}")
"""numpy kinds that hold plain values: no objects, no records."""


class Settings:
    """A mapping subclass (yacs, mmengine) as a plain ordered dictionary."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty dictionary; the unpickler fills it."""
        return OrderedDict()


class Ignored:
    """An object whose content no weights depend on."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


class DType:
    """A numpy dtype of plain numbers or text."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if isinstance(kind, bytes):
            kind = kind.decode("ascii", "replace")
        if not isinstance(kind, str) or not NUMBER.fullmatch(kind):
            raise UserError(f"holds a numpy array of kind {str(kind)[:40]!r}, expected numbers")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        """Take the byte order; everything else belongs to records, which are refused."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UserError("holds a damaged numpy dtype")
        self.order = state[1]

    def array(self, data: bytes) -> np.ndarray:
        """Return the values in the bytes."""
        order = "" if self.order in "|=" else self.order
        return np.frombuffer(data, dtype=np.dtype(order + self.kind))


class Array:
    """A numpy array; becomes a tensor once the file is read."""

    def __init__(self, *_: Any) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: Any) -> None:
        """Take shape, kind and bytes if they agree."""
        _, shape, kind, fortran, data = state
        if not isinstance(kind, DType) or not isinstance(data, (bytes, str)):
            raise UserError("holds a numpy array that is not plain numbers")
        values = kind.array(_as_bytes(data))
        values = values.reshape(shape, order="F" if fortran else "C")
        if values.dtype.kind in "biuf":
            native = values.dtype.newbyteorder("=")
            self.tensor = torch.from_numpy(np.array(values, dtype=native, order="C"))


def rebuild_array(*_: Any) -> Array:
    """Stand for numpy's array constructor."""
    return Array()


def rebuild_scalar(kind: Any, data: Any = b"") -> Any:
    """Stand for numpy's scalar constructor: return the plain Python value."""
    if not isinstance(kind, DType):
        raise UserError("holds a damaged numpy scalar")
    values = kind.array(_as_bytes(data))
    return values[0].item() if len(values) else None


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand for codecs.encode, which old pickles use for bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UserError("holds bytes in an unusual encoding")
    return text.encode("latin1")


def joined_path(*parts: Any) -> str:
    """Stand for a pathlib path: return it as text."""
    return "/".join(str(part) for part in parts)


def _as_bytes(data: Any) -> bytes:
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes):
        raise UserError("holds a numpy value without bytes")
    return data


def allowed() -> list[Any]:
    """Return the allow-list: a stand-in for each name, and argparse's passive Namespace."""
    names: list[Any] = [argparse.Namespace, (encode, "_codecs.encode")]
    for core in ("numpy.core", "numpy._core"):
        names += [
            (rebuild_scalar, f"{core}.multiarray.scalar"),
            (rebuild_array, f"{core}.multiarray._reconstruct"),
        ]
    names += [(Array, "numpy.ndarray"), (DType, "numpy.dtype")]
    for module in ("pathlib", "pathlib._local"):
        names += [(joined_path, f"{module}.{name}") for name in PATHS]
    names += [(Settings, name) for name in MAPPINGS]
    names += [(Ignored, name) for name in PASSIVE]
    return names


PATHS = ("PosixPath", "WindowsPath", "PurePosixPath")
MAPPINGS = (
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
)
PASSIVE = ("mmengine.logging.history_buffer.HistoryBuffer",)


def without_standins(value: Any, depth: int = 4) -> Any:
    """Return the value with arrays as tensors and a Namespace as a mapping, a few levels deep."""
    if isinstance(value, Array):
        return value.tensor
    if isinstance(value, argparse.Namespace):
        return {str(k): v for k, v in vars(value).items()}
    if depth and isinstance(value, dict):
        return {k: without_standins(v, depth - 1) for k, v in value.items()}
    return value
