"""From a checkpoint's path to its content: the first bytes decide the kind, never the name."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mimbench.checkpoints.reading.archive import read_torch
from mimbench.checkpoints.reading.layout import Raw
from mimbench.checkpoints.reading.tensorfile import read_safetensors
from mimbench.system.errors import UserError
from mimbench.system.files import file_digest, value_digest
from mimbench.system.listing import first_few

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
SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Weight files of a folder, the preferred first; each may have an index beside it instead."""


def read_raw(path: Path) -> Raw:
    """Return the content of a file or of a folder as Hugging Face writes them."""
    if path.is_dir():
        return _read_folder(path)
    top, metadata = _read_file(path)
    return Raw(path=path, top=top, metadata=metadata)


def source_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, over its weight files in order and its settings."""
    if not path.is_dir():
        return file_digest(path)
    files = [*weight_files(path), *(path / name for name in SETTINGS if (path / name).is_file())]
    return value_digest([[file.name, file_digest(file)] for file in files])


SETTINGS = ("config.json", "preprocessor_config.json")


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
    found = first_few(sorted(p.name for p in folder.iterdir()), 8)
    raise UserError(
        f"{folder}: a folder needs {' or '.join(SINGLE)} (or its .index.json); it holds {found}"
    )


def _inside(folder: Path, name: str, index: Path) -> Path:
    if Path(name).name != name or not (folder / name).is_file():
        raise UserError(f"{index}: names '{name[:80]}', which is no file of the folder")
    return folder / name


def _read_folder(folder: Path) -> Raw:
    top: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for file in weight_files(folder):
        part, said = _read_file(file)
        if twice := _first(top.keys() & part.keys()):
            raise UserError(f"{file}: '{twice}' is in another part of the folder too")
        top |= part
        metadata |= said
    config, preprocessor = (
        _json(folder / name) if (folder / name).is_file() else {} for name in SETTINGS
    )
    return Raw(path=folder, top=top, metadata=metadata, config=config, preprocessor=preprocessor)


def _first(names: Iterable[str]) -> str | None:
    return next(iter(sorted(names)), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected an object")
    return value


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not start:
        raise UserError(f"{path}: the file is empty")
    for magic, what in MISTAKEN:
        if start.lstrip()[: len(magic)].lower() == magic.lower():
            raise UserError(f"{path}: this is {what}")
    if start[257:262] == b"ustar":
        raise UserError(f"{path}: this is a tar archive: unpack it first")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return read_safetensors(path)
    if not start.startswith((b"PK", b"\x80")):
        raise UserError(
            f"{path}: neither a torch file nor safetensors: it begins with {start[:8]!r}; "
            "truncated at the front, or another kind of file"
        )
    return read_torch(path), {}
