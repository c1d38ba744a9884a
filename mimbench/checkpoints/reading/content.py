"""From a checkpoint's path to its content: the first bytes decide the kind, never the name."""

import itertools
import json
import os
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mimbench.checkpoints.reading.archive import read_torch
from mimbench.checkpoints.reading.layout import Raw
from mimbench.checkpoints.reading.mistaken import absent, inside
from mimbench.checkpoints.reading.tensorfile import read_safetensors
from mimbench.system.errors import UserError, printable
from mimbench.system.files import file_digest, value_digest
from mimbench.system.listing import first_few
from mimbench.system.pickles import limits

MISTAKEN = [
    (b"version https://git-lfs", "a Git LFS pointer, not the file: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, not a checkpoint: the download needs a confirmation or a login"),
    (b"<html", "a web page, not a checkpoint: the download needs a confirmation or a login"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x93NUMPY", "a numpy array, not a checkpoint"),
    (b"\x89HDF", "an HDF5 file (Keras): convert it to safetensors first"),
]
SINGLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Weight files of a folder, the preferred first; each may have an index beside it instead."""


def read_raw(path: Path) -> Raw:
    """Return the content of a file or of a folder as Hugging Face writes them."""
    try:
        if not path.exists():
            raise UserError(f"{path}: {absent(path)}")
        raw = _read_folder(path) if path.is_dir() else _read_file(path)
        check_names(raw.top)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UserError as error:
        named = str(UserError(str(path))) in str(error)
        raise UserError(str(error) if named else f"{path}: {error}") from error
    return raw


def check_names(top: Mapping[Any, Any]) -> None:
    """Refuse more or stranger names than any network has: every name is matched many times."""
    entries = names = 0
    states = (value for value in top.values() if isinstance(value, Mapping))
    for mapping in itertools.chain((top,), states):
        # lengths come first: a file may refer to one large mapping many times
        entries += len(mapping)
        if entries > limits.ENTRIES:
            raise UserError(f"holds {limits.ENTRIES:,} entries or more: no checkpoint of a network")
        if mapping is top or any(isinstance(value, Tensor) for value in mapping.values()):
            names += len(mapping)
            _check_each(name for name in mapping if isinstance(name, str))
    if names > limits.NAMES:
        raise UserError(f"holds {names:,} names of tensors: no checkpoint of a network")


def _check_each(names: Iterable[str]) -> None:
    for name in names:
        if len(name) > limits.NAME_LENGTH or not name.isprintable():
            raise UserError(
                f"holds an entry named '{printable(name, 60)}' ({len(name):,} characters): "
                "no network has such a name; the file is damaged or made to mislead"
            )


def source_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, over its weight files in order and its settings."""
    if not path.is_dir():
        return file_digest(path)
    files = [*weight_files(path), *(path / name for name in SETTINGS if (path / name).is_file())]
    return value_digest([[file.name, file_digest(file)] for file in files])


SETTINGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder in order; safetensors are preferred."""
    for name in SINGLE:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            parts = _json(index).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise UserError(f"{index}: has no 'weight_map'")
            return [_inside(folder, part, index) for part in sorted(set(map(str, parts.values())))]
    if meant := sharded(folder) or inside(folder, SINGLE):
        raise UserError(f"{folder}: no checkpoint itself; {meant}")
    some = itertools.islice(folder.iterdir(), 1000)
    found = first_few(sorted(p.name for p in some), 8)
    raise UserError(
        f"{folder}: a folder needs {' or '.join(SINGLE)} (or its .index.json); it holds {found}"
    )


def sharded(folder: Path) -> str:
    """Return what a folder of a sharded training state is, and how it becomes one file; '' if it is none."""
    whole = shlex.quote(f"{folder.name}.pth")
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        return (
            "this is a sharded checkpoint of torch.distributed (FSDP); its index is a pickle that only its own "
            "library may open. Make one file of it, where it was written: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(folder))} {whole}"
        )
    states = sorted(folder.glob("**/*mp_rank_*_model_states.pt"))
    if any(state.name.startswith("zero_pp_rank_") for state in states):
        return (
            "this is a DeepSpeed checkpoint whose weights are cut into parts (ZeRO-3); make one file of them "
            f"with the script that DeepSpeed put there: python zero_to_fp32.py . {whole}"
        )
    if states:
        return (
            f"this is a DeepSpeed checkpoint; its weights are whole in {states[0]}: give that file"
        )
    return ""


def _inside(folder: Path, name: str, index: Path) -> Path:
    if Path(name).name != name or not (folder / name).is_file():
        raise UserError(f"{index}: names '{printable(name, 80)}', which is no file of the folder")
    return folder / name


def _read_folder(folder: Path) -> Raw:
    top: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    notes: dict[str, None] = {}
    for file in weight_files(folder):
        part = _read_file(file)
        if twice := _first(str(name) for name in top.keys() & part.top.keys()):
            raise UserError(f"{file}: '{twice}' is in another part of the folder too")
        top |= part.top
        metadata |= part.metadata
        notes |= dict.fromkeys(part.notes)
    config, preprocessor, open_clip = (
        _json(folder / name) if (folder / name).is_file() else {} for name in SETTINGS
    )
    return Raw(
        path=folder,
        top=top,
        metadata=metadata,
        config=config,
        preprocessor=preprocessor,
        open_clip=open_clip,
        notes=tuple(notes),
    )


def _first(names: Iterable[str]) -> str | None:
    return next(iter(sorted(names)), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > limits.JSON_BYTES:
            raise UserError(f"{path}: no file of at most {limits.JSON_BYTES >> 20} MB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _read_file(path: Path) -> Raw:
    start = _start(path)
    for magic, what in MISTAKEN:
        if start.lstrip()[: len(magic)].lower() == magic.lower():
            raise UserError(f"{path}: this is {what}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path}: this is a tar archive: unpack it first")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        top, metadata = read_safetensors(path)
        return Raw(path=path, top=top, metadata=metadata)
    if not start.startswith((b"PK", b"\x80")):
        raise UserError(
            f"{path}: neither a torch file nor safetensors: it begins with {start[:8]!r}; "
            "truncated at the front, or another kind of file"
        )
    value, notes = read_torch(path)
    return Raw(path=path, top=value, notes=notes)


def _start(path: Path) -> bytes:
    """Return the first bytes of a file that is one, and whole."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: a device or a pipe, not a file: give a file or a folder")
    with path.open("rb") as file:
        start = file.read(512)
        holes = _holes(file.fileno(), path.stat().st_size)
    if not start:
        raise UserError(f"{path}: the file is empty; download or copy it again")
    if holes > path.stat().st_size / 2 and holes > HOLES:
        raise UserError(
            f"{path}: {holes / 1e9:,.1f} GB of it were never written: the download did not finish"
        )
    return start


HOLES = 64 << 20


def _holes(descriptor: int, size: int) -> int:
    """Return how many bytes of a file lie on no disk; a download reserves them before it fills them."""
    total = at = 0
    for _ in range(limits.ENTRIES):
        try:
            hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        except OSError:  # the file system keeps no such account
            return total
        if hole >= size:
            return total
        try:
            at = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError:  # no data follows
            return total + size - hole
        total += at - hole
    return total
