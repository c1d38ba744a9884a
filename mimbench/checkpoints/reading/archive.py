"""Torch files to plain data: checked before they are opened, and nothing in them runs."""

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimbench.checkpoints.reading.standins import allowed, without_standins
from mimbench.system.errors import UserError

DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
    ImportError,
)
"""What a damaged pickle can raise on its way through torch's restricted unpickler."""

PICKLE_LIMIT = 256 << 20
"""Bytes of structure (not of weights): more than any checkpoint has."""

CONVERT = (
    "To convert it, run this where the file was made and can be trusted:\n"
    "    import torch\n"
    "    state = torch.load('{path}', map_location='cpu', weights_only=False)\n"
    "    state = state.get('state_dict', state.get('model', state))\n"
    "    torch.save({{k: v for k, v in state.items() if isinstance(v, torch.Tensor)}}, 'weights.pth')"
)
CONVERT_PICKLE = (
    "It is a plain pickle (as detectron2's .pkl), not a torch file. "
    "To convert it, run this where it can be trusted:\n"
    "    import pickle, torch\n"
    "    torch.save(pickle.load(open('{path}', 'rb')), 'weights.pth')"
)
CONVERT_SCRIPT = (
    "It is a TorchScript archive, which carries code. "
    "To convert it, run this where it can be trusted:\n"
    "    import torch\n"
    "    model = torch.jit.load('{path}', map_location='cpu')\n"
    "    torch.save(dict(model.state_dict()), 'weights.pth')"
)


def read_torch(path: Path) -> dict[str, Any]:
    """Return the mapping in a torch file, zip or legacy, with every tensor checked against it."""
    size = path.stat().st_size
    zipped = zipfile.is_zipfile(path)
    if zipped:
        check_zip(path, size)
    value = without_standins(_load(path, mmap=zipped))
    if not isinstance(value, Mapping):
        raise UserError(
            f"{path}: holds a {type(value).__name__}, expected a mapping of names to tensors; "
            "save the state_dict, not the module"
        )
    _check_tensors(path, value, size)
    return dict(value)


def check_zip(path: Path, size: int) -> None:
    """Refuse zip files that torch does not write: compressed, overlapping, or larger inside than out."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*DAMAGE, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: truncated or damaged zip archive: {error}") from error
    names = [entry.filename for entry in entries]
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(f"{path}: a zip archive, but not torch's: it has no data.pkl")
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise UserError(f"{path}: refused. {CONVERT_SCRIPT.format(path=path.name)}")
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        where = f"{path}: entry '{entry.filename[-60:]}'"
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(
                f"{where} is compressed ({entry.compress_size:,} bytes promise "
                f"{entry.file_size:,}); torch never compresses: this may be a zip bomb"
            )
        if entry.header_offset < end:
            raise UserError(f"{where} overlaps another; this may be a zip bomb")
        end = entry.header_offset + entry.compress_size
        if end > size:
            raise UserError(f"{where} ends beyond the file's {size:,} bytes: truncated")
        if entry.filename.endswith("data.pkl") and entry.file_size > PICKLE_LIMIT:
            raise UserError(f"{where} has {entry.file_size:,} bytes of structure: refused")
    check_sums(path)


def check_sums(path: Path) -> None:
    """Refuse an archive whose bytes do not have the checksums that it was written with."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass
            except (*DAMAGE, zipfile.BadZipFile) as error:
                if _without_sums(archive, error):
                    return
                raise UserError(
                    f"{path}: damaged: entry '{entry.filename[-60:]}' does not have the checksum it "
                    f"was written with ({error}); download or copy the file again"
                ) from error


def _without_sums(archive: zipfile.ZipFile, error: BaseException) -> bool:
    """Return whether the archive was written without checksums (torch has an option for it)."""
    stored = {entry.CRC for entry in archive.infolist() if entry.file_size}
    return "CRC" in str(error) and stored == {0}


def _load(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals(allowed()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise _explained(path, error) from error


def _explained(path: Path, error: BaseException) -> UserError:
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"reduce for .*? (\S+)>?", text)
    if named:
        return UserError(
            f"{path}: refused: reading it would need '{named[1]}', which is not plain data. "
            + CONVERT.format(path=path.name)
        )
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"{path}: cannot be read: {error.strerror}")
    if "magic number" in text:
        return UserError(f"{path}: refused. {CONVERT_PICKLE.format(path=path.name)}")
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return UserError(
        f"{path}: truncated or damaged: {type(error).__name__}: {first.strip()[:200]}; "
        "download or copy it again and compare its SHA-256"
    )


def _check_tensors(path: Path, value: Any, size: int, depth: int = 4) -> None:
    """Refuse tensors that claim more values than their storage, or the file, holds."""
    if isinstance(value, Tensor):
        dense = value.layout == torch.strided and not value.is_quantized
        if not dense:
            raise UserError(f"{path}: holds a sparse or quantised tensor, expected dense values")
        claimed = value.numel() * value.element_size()
        if claimed > value.untyped_storage().nbytes() or claimed > size:
            raise UserError(
                f"{path}: a tensor of shape {tuple(value.shape)} promises {claimed:,} bytes, more "
                "than the file stores: expanded view or bomb"
            )
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            _check_tensors(path, item, size, depth - 1)
