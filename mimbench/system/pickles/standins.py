"""Inert stand-ins for the few foreign classes in checkpoints: their data is kept, nothing of theirs runs."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.system.pickles import limits
from mimbench.system.pickles.machine import Attributes, Filled, Inert, Name

KIND = re.compile(r"(b1|[iu][1248]|f[248]|c8|c16)|[SU]\d{1,5}")
"""numpy kinds that hold plain values: no objects, no records. The first group fits a tensor."""

PATH_LENGTH = 4096


class DType(Filled):
    """A numpy dtype of plain numbers or text."""

    def __init__(self, kind: Any, *_: Any) -> None:
        if isinstance(kind, bytes):
            kind = kind.decode("ascii", "replace")
        if not isinstance(kind, str) or not KIND.fullmatch(kind):
            shown = kind[:40] if isinstance(kind, str) else type(kind).__name__
            raise UserError(f"holds a numpy array of kind {shown!r}, expected numbers")
        self.kind, self.order = kind, "<"

    def fill(self, state: Any) -> None:
        """Take the byte order; everything else belongs to records, which are refused."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise UserError("holds a damaged numpy dtype")
        self.order = state[1]

    def array(self, data: bytes) -> np.ndarray:
        """Return the values in the bytes."""
        return np.frombuffer(data, dtype=np.dtype(self.order.strip("|=") + self.kind))


class Array(Filled):
    """A numpy array; its tensor stands for it once the file is read."""

    def __init__(self, *_: Any) -> None:
        self.tensor: Tensor | None = None
        self.filled = False

    def fill(self, state: Any) -> None:
        """Take shape, kind and bytes if they agree."""
        _, shape, kind, fortran, data = state
        if not isinstance(kind, DType):
            raise UserError("holds a numpy array that is not plain numbers")
        values = kind.array(_as_bytes(data))
        if math.prod(checked_sizes(shape)) != values.size:
            raise UserError(f"holds a numpy array of {values.size:,} values for another shape")
        values = values.reshape(shape, order="F" if fortran else "C")
        self.filled = True
        if values.dtype.kind in "biufc":
            native = values.dtype.newbyteorder("=")
            self.tensor = torch.from_numpy(np.array(values, dtype=native, order="C"))

    def value(self) -> Tensor | None:
        """Return the tensor; text has none."""
        if not self.filled:
            raise UserError("holds a numpy array without values")
        return self.tensor


def checked_sizes(sizes: Any) -> tuple[int, ...]:
    """Return the sizes, strides or offsets of an array if they are plain numbers."""
    if not isinstance(sizes, tuple) or len(sizes) > limits.RANK:
        raise UserError("damaged: a shape that is no short list of numbers")
    if not all(type(size) is int and 0 <= size < limits.SIZE for size in sizes):
        raise UserError("damaged: a shape with impossible numbers")
    return sizes


def _array(*_: Any) -> Array:
    return Array()


def _scalar(kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, DType):
        raise UserError("holds a damaged numpy scalar")
    values = kind.array(_as_bytes(data))
    if values.size != 1:
        raise UserError(f"holds a numpy scalar of {values.size} values")
    return values[0].item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Return the bytes that old pickles keep as text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UserError("holds bytes in an unusual encoding")
    return text.encode("latin1")


def _as_bytes(data: Any) -> bytes:
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes):
        raise UserError("holds a numpy value without bytes")
    return data


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts):
        raise UserError("holds a damaged path")
    joined = "/".join(parts)
    if len(joined) > PATH_LENGTH:
        raise UserError(f"holds a path of {len(joined):,} characters")
    return joined


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if pairs != () and not (isinstance(pairs, list) and not pairs):
        raise UserError("holds an ordered dictionary in an unusual form")
    return OrderedDict()


def _mapping(*parts: Any) -> dict[Any, Any]:
    return next((part for part in parts if isinstance(part, dict)), {})


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list) or len(items) > limits.ODD_KEYS:
        raise UserError("holds a damaged set")
    if not all(isinstance(item, (str, int, float, type(None))) for item in items):
        raise UserError("holds a set of something that is neither text nor numbers")
    return set(items)


def _text_of(value: Any, *rest: Any) -> str:
    """Return a device or a layout as text."""
    if not isinstance(value, str) or not all(isinstance(item, int) for item in rest):
        raise UserError("holds a damaged device")
    return ":".join([value, *map(str, rest)])[:PATH_LENGTH]


def _bytearray(content: Any = b"", *encoding: Any) -> bytes:
    return _encoded(content, *encoding) if isinstance(content, str) else _as_bytes(content)


def _complex(real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _inert(*_: Any) -> Inert:
    return Inert()


def _settings(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


CALLS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": lambda *_: Attributes(),
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _mapping,
    "collections.defaultdict": _mapping,
    "builtins.set": _set,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "torch.Size": checked_sizes,
    "torch.device": _text_of,
    "torch.serialization._get_layout": _text_of,
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _scalar),
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _array
    ),
    "numpy.dtype": DType,
    **{
        f"{module}.{kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath")
    },
    "yacs.config.CfgNode": _settings,
    "fvcore.common.config.CfgNode": _settings,
    "detectron2.config.config.CfgNode": _settings,
    "mmengine.logging.history_buffer.HistoryBuffer": _inert,
    **{
        f"{module}.AttributeDict": _settings
        for module in (
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
        )
    },
    **{
        f"omegaconf.{kind}": _inert
        for kind in (
            "dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata",
            "base.Metadata", "nodes.AnyNode", "nodes.StringNode", "nodes.IntegerNode",
            "nodes.FloatNode", "nodes.BooleanNode",
        )
    },
}  # fmt: skip
"""Full name in a pickle -> what is called instead."""


def without_standins(value: Any) -> Any:
    """Return the value with arrays as tensors, in every mapping that it holds."""
    if isinstance(value, Array):
        return value.value()
    waiting, seen = [value], set()
    while waiting:
        mapping = waiting.pop()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        for key, item in mapping.items():
            if isinstance(item, Array):
                mapping[key] = item.value()
            elif isinstance(item, Name):
                mapping[key] = item.text
            elif isinstance(item, dict):
                waiting.append(item)
    return value
