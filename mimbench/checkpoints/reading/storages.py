"""Tensors of a torch file: made from their own bytes in the file, and from nothing else."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mimbench.system.errors import UserError
from mimbench.system.pickles import limits
from mimbench.system.pickles.machine import Name, RefusedError
from mimbench.system.pickles.standins import checked_sizes

TYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
"""Class of a storage in a pickle -> type of its elements."""

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8",
                 "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128",
                 "float8_e4m3fn", "float8_e5m2")
}  # fmt: skip

OTHER_KINDS = (
    "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor",
    "_rebuild_nested_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass",
)  # fmt: skip
ALLOWANCE = 64 << 20


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle names it, or a part of one."""

    key: str
    dtype: torch.dtype
    start: int
    """First element within the whole."""
    count: int
    """Elements."""


class Tensors:
    """Makes the tensors of one file.

    Args:
        fetch: Key and number of bytes -> the whole storage, or an error if the file lacks it.
        size: Bytes of the file; distinct tensors that promise far more are refused.
        dense: Refuse tensors with gaps or overlaps: where no checksum stands against it, a changed
            stride gives other values.
    """

    def __init__(
        self, fetch: Callable[[str, int], torch.UntypedStorage], size: int, *, dense: bool = False
    ) -> None:
        self.fetch, self.dense = fetch, dense
        self.budget = 2 * size + ALLOWANCE
        self.kinds: dict[str, tuple[torch.dtype, int]] = {}
        self.wholes: dict[str, torch.UntypedStorage] = {}
        self.made: dict[Any, Tensor] = {}
        self.calls = {
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v2": self.rebuild_second,
            "torch._utils._rebuild_tensor_v3": self.rebuild_third,
            "torch._utils._rebuild_parameter": self.same,
            "torch._utils._rebuild_parameter_with_state": self.same,
            "torch._utils._rebuild_device_tensor_from_cpu_tensor": self.same,
            "torch._tensor._rebuild_from_type_v2": self.rebuild_typed,
            **{f"torch._utils.{name}": _refuse_kind for name in OTHER_KINDS},
        }

    def storage(self, identifier: Any) -> Storage:
        """Return the storage that a persistent identifier names."""
        if not isinstance(identifier, tuple) or not identifier:
            raise UserError("damaged: a storage without a name")
        if identifier[0] in ("module", b"module"):
            raise UserError("it holds a whole module with its source; save its state_dict instead")
        tag, kind, key, _, count, *view = identifier
        dtype = TYPES.get(kind.text.rpartition(".")[2]) if isinstance(kind, Name) else None
        if dtype is None or tag not in ("storage", b"storage"):
            raise UserError("holds a storage of an unknown kind (quantised, or damaged)")
        key = key.decode("ascii") if isinstance(key, bytes) else key
        (count,) = checked_sizes((count,))
        if not isinstance(key, str) or len(key) > limits.NAME_LENGTH:
            raise UserError("damaged: a storage without a key")
        if self.kinds.setdefault(key, (dtype, count)) != (dtype, count):
            raise UserError("damaged: one storage is described in two ways")
        start = 0
        if view and view[0] is not None:
            _, start, part = view[0]
            start, part = checked_sizes((start, part))
            if start + part > count:
                raise UserError("damaged: a part that reaches beyond its storage")
            count = part
        return Storage(key, dtype, start, count)

    def whole(self, key: str) -> torch.UntypedStorage:
        """Return the bytes of a storage."""
        if key not in self.wholes:
            dtype, count = self.kinds[key]
            self.wholes[key] = self.fetch(key, count * dtype.itemsize)
        return self.wholes[key]

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """Return a tensor on its storage; what it promises must be there."""
        if not isinstance(storage, Storage):
            raise UserError("damaged: a tensor without a storage")
        return self._make(storage, storage.dtype, storage.count, (offset, size, stride))

    def rebuild_second(
        self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
    ) -> Tensor:
        """Return a tensor; gradient and hooks do not matter, bits that change its values do."""
        if len(rest) > 2 and rest[2]:
            raise UserError(
                "holds a tensor that is negated or conjugated on the way; save .clone()"
            )
        return self.rebuild(storage, offset, size, stride)

    def rebuild_third(
        self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
    ) -> Tensor:
        """Return a tensor whose type stands beside its storage."""
        _, _, kind, *metadata = rest
        dtype = DTYPES.get(kind.text.removeprefix("torch.")) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(storage, Storage) or any(metadata):
            raise UserError("holds a tensor of an unknown kind, expected numbers")
        count = storage.count * storage.dtype.itemsize // dtype.itemsize
        return self._make(storage, dtype, count, (offset, size, stride))

    def rebuild_typed(self, function: Any, kind: Any, arguments: Any, _: Any) -> Tensor:
        """Return a tensor without the attributes that were hung on it."""
        plain = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor")
        if not isinstance(kind, Name) or kind.text not in plain:
            raise RefusedError(kind.text if isinstance(kind, Name) else "a class without a name")
        known = self.calls.get(function.text) if isinstance(function, Name) else None
        if known is None or known == self.rebuild_typed:
            raise UserError("damaged: a tensor that nothing rebuilds")
        return known(*arguments)

    def same(self, tensor: Any, *_: Any) -> Tensor:
        """Return the tensor of a parameter."""
        if not isinstance(tensor, Tensor):
            raise UserError("damaged: a parameter without a tensor")
        return tensor

    def _make(
        self, storage: Storage, dtype: torch.dtype, count: int, view: tuple[Any, Any, Any]
    ) -> Tensor:
        offset, size, stride = view
        (offset,) = checked_sizes((offset,))
        size, stride = checked_sizes(size), checked_sizes(stride)
        if self.dense and len(size) == len(stride) and not _dense(size, stride):
            raise UserError(
                "a tensor with gaps or overlaps, and no checksum that says it was saved so: damaged; "
                "if it is a view, save .contiguous()"
            )
        ident = (storage, dtype, offset, size, stride)
        if ident in self.made:
            return self.made[ident]
        if len(self.made) >= limits.TENSORS:
            raise UserError(f"more than {limits.TENSORS:,} tensors: no checkpoint")
        self.budget -= _span(size, stride, offset, count, dtype.itemsize)
        if self.budget < 0:
            raise UserError("its tensors promise more bytes than the file stores: views, or a bomb")
        begin = storage.start * storage.dtype.itemsize
        length = storage.count * storage.dtype.itemsize
        part = self.whole(storage.key)[begin : begin + length]
        tensor = torch.empty(0, dtype=dtype).set_(part, offset, size, stride)
        self.made[ident] = tensor
        return tensor


def _dense(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether the elements lie side by side, in whatever order of the dimensions."""
    wanted = 1
    for step, length in sorted((s, n) for n, s in zip(size, stride, strict=True) if n > 1):
        if step != wanted:
            return False
        wanted *= length
    return True


def _span(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, count: int, itemsize: int
) -> int:
    """Return a view's bytes if all of its elements lie within the storage's `count`."""
    if len(size) != len(stride):
        raise UserError("damaged: a tensor whose shape and strides do not fit together")
    numel = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if numel > count or (numel and last >= count):
        raise UserError(
            f"a tensor of shape {size} promises {numel * itemsize:,} bytes, its storage has "
            f"{count * itemsize:,}: expanded view or bomb"
        )
    return numel * itemsize


def _refuse_kind(*_: Any) -> Tensor:
    raise UserError("holds a sparse, quantised, nested or meta tensor, expected dense values")
