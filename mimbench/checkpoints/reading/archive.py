"""Torch files to plain data: their structure is read as data, their tensors stay mapped."""

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimbench.checkpoints.reading import zipped
from mimbench.checkpoints.reading.storages import Tensors
from mimbench.system.errors import UserError
from mimbench.system.pickles import limits, opcodes
from mimbench.system.pickles.machine import PickleMachine, RefusedError
from mimbench.system.pickles.standins import CALLS, without_standins

CONVERT = (
    "If you trust it, convert it where it was made: python -c \"import torch; s = torch.load('FILE', "
    "map_location='cpu', weights_only=False); s = s.get('state_dict', s.get('model', s)); "
    "torch.save({k: v for k, v in s.items() if isinstance(v, torch.Tensor)}, 'weights.pth')\""
)
CONVERT_PICKLE = (
    "It is a plain pickle (as detectron2's .pkl), not a torch file. If you trust it, convert it: "
    "python -c \"import pickle, torch; torch.save(pickle.load(open('FILE', 'rb')), 'weights.pth')\""
)
CONVERT_SCRIPT = (
    "It is a TorchScript archive, which carries code. If you trust it, convert it: python -c "
    "\"import torch; torch.save(dict(torch.jit.load('FILE', map_location='cpu').state_dict()), "
    "'weights.pth')\""
)
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""What a torch file from before 1.6 begins with."""

NO_SUMS = "the file carries no checksums: bytes that changed on the way cannot be found"


def read_torch(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the mapping in a torch file, zip or legacy, and what a reader should know of it."""
    with path.open("rb") as file:
        # written to, a page is copied: the file itself never changes
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    data = memoryview(mapped)
    try:
        if bytes(data[:2]) == b"PK":
            value, notes = _read_zip(data)
        else:
            value, notes = _read_legacy(data), (NO_SUMS,)
    except RefusedError as error:
        raise UserError(f"{path}: refused: {error}. {CONVERT}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path}: holds a {type(value).__name__}, expected a mapping of names to tensors; "
            "save the state_dict, not the module"
        )
    return dict(value), notes


def _read_zip(data: memoryview) -> tuple[Any, tuple[str, ...]]:
    found = zipped.entries(data)
    root = _root(found)
    zipped.check_stored(found.values())
    if found[f"{root}data.pkl"].size > limits.PICKLE_BYTES:
        raise UserError("has more than 256 MB of structure beside its tensors: refused")
    order = found.get(f"{root}byteorder")
    if order and bytes(data[order.start : order.start + min(order.size, 16)]) != b"little":
        raise UserError("written on a big-endian machine: load and save it on another first")
    notes = () if zipped.check_sums(data, found) else (NO_SUMS,)
    whole = torch.frombuffer(data, dtype=torch.uint8).untyped_storage()

    def fetch(key: str, count: int) -> torch.UntypedStorage:
        entry = found.get(f"{root}data/{key}")
        if entry is None or entry.size != count:
            held = "nothing" if entry is None else f"{entry.size:,} bytes"
            raise UserError(f"truncated or damaged: a storage needs {count:,} bytes, it has {held}")
        part = whole[entry.start : entry.start + count]
        return part if entry.start % 16 == 0 else part.clone()

    tensors = Tensors(fetch, len(data))
    pickled = found[f"{root}data.pkl"]
    part = data[pickled.start : pickled.start + pickled.size]
    machine = PickleMachine(part, CALLS | tensors.calls, tensors.storage)
    return without_standins(opcodes.load(machine)), notes


def _root(names: Iterable[str]) -> str:
    """Return the folder inside the archive that holds everything."""
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise UserError(f"refused. {CONVERT_SCRIPT}")
    if len(pickles) != 1:
        raise UserError(f"a zip archive, but not torch's: it has {len(pickles) or 'no'} data.pkl")
    return pickles[0].removesuffix("data.pkl")


def _read_legacy(data: memoryview) -> Any:
    """Return the content of a file from before torch 1.6: pickles, then the storages' bytes."""
    made: dict[str, torch.UntypedStorage] = {}
    held = len(data)

    def fetch(key: str, count: int) -> torch.UntypedStorage:
        nonlocal held
        held -= count
        if held < 0:
            raise UserError("truncated or damaged: its storages need more bytes than the file has")
        made[key] = torch.UntypedStorage(count)
        return made[key]

    tensors = Tensors(fetch, len(data), dense=True)
    machine = PickleMachine(data, CALLS | tensors.calls, tensors.storage)
    if MAGIC.to_bytes(10, "little") not in bytes(data[:64]):
        raise UserError(f"refused. {CONVERT_PICKLE}")
    if opcodes.load(machine) != MAGIC or opcodes.load(machine) != PROTOCOL:
        raise UserError("damaged: a torch file of an unknown protocol")
    opcodes.load(machine)  # how the machine that wrote it counted
    value = opcodes.load(machine)
    keys = opcodes.load(machine)
    plain = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not plain or made.keys() - set(keys) or len(set(keys)) != len(keys):
        raise UserError("truncated or damaged: the list of its storages is not as torch writes it")
    for key in keys:
        content = _legacy_storage(machine, tensors, key)
        if key in made:
            bytes_of = torch.empty(0, dtype=torch.uint8).set_(made[key]).numpy()
            bytes_of[:] = np.frombuffer(content, dtype=np.uint8)
    if machine.position != len(data):
        raise UserError("damaged: bytes after the last storage")
    return without_standins(value)


def _legacy_storage(machine: PickleMachine, tensors: Tensors, key: str) -> memoryview:
    """Return the next storage's bytes, which follow their number of elements."""
    if key not in tensors.kinds:
        raise UserError("damaged: a storage that no tensor uses")
    dtype, count = tensors.kinds[key]
    if int.from_bytes(machine.take(8), "little", signed=True) != count:
        raise UserError("damaged: a storage has another length than its tensors say")
    return machine.take(count * dtype.itemsize)
