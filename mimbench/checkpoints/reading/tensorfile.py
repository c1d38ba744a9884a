"""safetensors files to plain data: the header is checked before a byte is mapped."""

import json
import math
import struct
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mimbench.system.errors import UserError, printable
from mimbench.system.pickles import limits

SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, memory-mapped, and the header's own strings."""
    check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not a valid safetensors file: {error}") from error


def check_header(path: Path) -> None:
    """Refuse a header whose tensors overlap, leave gaps or lie outside the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise UserError(f"{path}: {size} bytes: too short for a safetensors header")
        (length,) = struct.unpack("<Q", start)
        if length > limits.HEADER_BYTES and length <= size - 8:
            raise UserError(f"{path}: a header of {length:,} bytes: no network has so many tensors")
        if length > size - 8:
            raise UserError(
                f"{path}: the header claims {length:,} bytes, the file has {size:,}: "
                "truncated, or no safetensors file"
            )
        header = _parse(path, file.read(length))
    if len(header) > limits.NAMES:
        raise UserError(f"{path}: {len(header):,} tensors: no checkpoint of a network")
    said = header.get("__metadata__", {})
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        raise UserError(f"{path}: the header's '__metadata__' is no mapping of names to text")
    spans = sorted(_span(path, n, e) for n, e in header.items() if n != "__metadata__")
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise UserError(
                f"{path}: tensor '{printable(name, 80)}' overlaps another or leaves a gap"
            )
        end = stop
    held = size - 8 - length
    if end > held:
        raise UserError(f"{path}: truncated: tensors need {end:,} bytes, {held:,} are there")
    if end < held:
        raise UserError(f"{path}: {held - end:,} bytes after the last tensor belong to nothing")


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: the safetensors header is not valid JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: the safetensors header is not an object")
    return header


def _span(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    try:
        item, shape = SIZES[entry["dtype"]], entry["shape"]
        begin, stop = entry["data_offsets"]
        numbers = [begin, stop, *shape]
        plain = isinstance(shape, list) and len(shape) <= limits.RANK
        if not plain or not all(type(n) is int and 0 <= n < limits.SIZE for n in numbers):
            raise ValueError("sizes are not whole numbers")
    except (KeyError, TypeError, ValueError) as error:
        shown = f"{printable(name, 80)}' is damaged: {printable(str(error), 80)}"
        raise UserError(f"{path}: header entry '{shown}") from error
    if stop - begin != math.prod(shape) * item:
        raise UserError(
            f"{path}: tensor '{printable(name, 80)}' of shape {tuple(shape)} {entry['dtype']} needs "
            f"{math.prod(shape) * item:,} bytes, the header gives it {stop - begin:,}"
        )
    return begin, stop, name
