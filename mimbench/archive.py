"""Files to plain data: tensors and settings come out, nothing in the file runs."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mimbench.errors import UserError
from mimbench.layout import Raw


def read_raw(path: Path) -> Raw:
    """Return what the file holds."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return Raw(path=path, top=_read_torch(path))


def _read_safetensors(path: Path) -> Raw:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            top = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Raw(path=path, top=top, metadata=file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a readable checkpoint: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a mapping of tensors")
    return value
