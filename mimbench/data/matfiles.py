"""MATLAB files of published sets: plain arrays and records, of a size that such lists have."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from mimbench.system.errors import UserError

LARGEST = 64 << 20
"""Bytes of a file, and of what it promises to hold; Cars' list of 8,144 images has 0.6 MB."""


def read_mat(path: Path, name: str) -> np.ndarray:
    """Return one variable of a file; records are records, and nothing in it is ever run."""
    # scipy.io is slow to import
    from scipy.io import loadmat, whosmat  # noqa: PLC0415
    from scipy.io.matlab import MatReadError  # noqa: PLC0415

    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes, more than such a list has")
        held = {n: (shape, kind) for n, shape, kind in whosmat(str(path))}
        if name not in held:
            raise UserError(f"{path}: holds {', '.join(held) or 'nothing'}, expected {name}")
        shape, kind = held[name]
        if kind in ("object", "opaque", "function") or np.prod(shape, dtype=float) > LARGEST // 8:
            raise UserError(f"{path}: {name} is a {kind} of shape {shape}, expected a list")
        content: Any = loadmat(str(path), variable_names=[name], squeeze_me=True)
    except (OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, MatReadError,
            OverflowError, MemoryError, zlib.error) as error:  # fmt: skip
        raise UserError(f"{path}: not a readable MATLAB file: {error}") from error
    return np.atleast_1d(content[name])


def numbers(values: Any, path: Path) -> list[int]:
    """Return whole numbers."""
    try:
        return [int(value) for value in np.asarray(values).ravel().tolist()]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected whole numbers: {error}") from error


def field(records: np.ndarray, name: str, path: Path) -> list[Any]:
    """Return one field of each record."""
    if records.dtype.names is None or name not in records.dtype.names:
        raise UserError(f"{path}: its records have {records.dtype.names}, expected {name}")
    return records[name].tolist()
