"""Training state on disk: written whole, holding all that an exact continuation needs."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path

FORMAT = "mimbench-training"
VERSION = 1


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every global generator of this process, as plain data and tensors."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            gauss,
        ),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators of this process back."""
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def gather(value: Any) -> list[Any]:
    """Return every process's value, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state; the old file stays until the new one is complete."""
    with atomic_path(path) as part:
        torch.save({"format": FORMAT, "version": VERSION, **state}, part)


def read_state(
    path: Path, device: torch.device | str = "cpu", *, lazily: bool = False
) -> dict[str, Any]:
    """Return the training state in a file; nothing in it is executed.

    The generators' states stay on the CPU, where torch wants them.

    Args:
        path: The file.
        device: Where its tensors go.
        lazily: Leave tensors on disk until they are looked at.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"cannot read the training state {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is no training state of mimbench; start afresh with --fresh")
    if state["version"] != VERSION:
        raise UserError(
            f"{path} is training state version {state['version']}, this code reads {VERSION}"
        )
    return state


def duplicate(path: Path, copy: Path) -> None:
    """Make `copy` the same file as `path`, at once and without writing it again where possible."""
    part = copy.with_name(f".{copy.name}.link")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        with atomic_path(copy) as target:
            shutil.copyfile(path, target)
        return
    part.replace(copy)
