"""Pickles of published sets, read as data: numbers, text, lists, mappings and numpy arrays of numbers.

The interpreter is the one that reads checkpoints; a pickle that mentions anything else is refused, and
nothing in it is ever called.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mimbench.system.errors import UserError
from mimbench.system.pickles import limits, opcodes
from mimbench.system.pickles.machine import PickleMachine
from mimbench.system.pickles.standins import CALLS, Array

ALLOWED = {
    name: call for name, call in CALLS.items() if name.startswith("numpy") or "encode" in name
}
"""What builds arrays and scalars."""


def read_pickle(content: Path | bytes, name: str = "") -> Any:
    """Return the value of a pickle; its arrays are stand-ins that `as_array` turns into numpy's.

    Args:
        content: A file, or its bytes.
        name: What to call bytes in an error.
    """
    where = str(content) if isinstance(content, Path) else name
    try:
        data = content.read_bytes() if isinstance(content, Path) else content
        if len(data) > limits.PICKLE_BYTES:
            raise UserError(f"{len(data):,} bytes, more than any published set's")
        return opcodes.load(PickleMachine(memoryview(data), ALLOWED, _refuse))
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}; expected the set's own file of plain data") from error


def as_array(value: Any, where: str) -> np.ndarray:
    """Return a numpy array of numbers from one in a pickle, or from a flat list of numbers."""
    if isinstance(value, Array):
        tensor = value.value()
        if tensor is not None:
            return tensor.numpy()
    flat = isinstance(value, (list, tuple)) and all(type(item) in (int, float) for item in value)
    if not flat:
        raise UserError(f"{where}: holds a {type(value).__name__}, expected numbers")
    return np.array(value)


def as_texts(value: Any, where: str) -> list[str]:
    """Return a list of text, which Python 2 may have written as bytes."""
    if not isinstance(value, list):
        raise UserError(f"{where}: holds a {type(value).__name__}, expected a list of names")
    texts = [item.decode("latin1") if isinstance(item, bytes) else item for item in value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: holds something else than names")
    return texts


def _refuse(_: Any) -> Any:
    raise UserError("it refers to something outside of the file")
