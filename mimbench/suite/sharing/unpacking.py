"""A bundle's archive opened with care: only plain files, inside the folder, in sober numbers and sizes."""

import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mimbench.system.errors import UserError, printable

FILES = 20_000
FILE_BYTES = 512 << 20
TOTAL_BYTES = 4 << 30
RATIO, ALLOWANCE = 100, 64 << 20
"""Unpacked bytes for each packed one, beyond an allowance: text shrinks to a tenth, zeros to a thousandth."""
DEPTH, NAME_LENGTH = 8, 255
RECORD = 512
HEADER_BYTES = 64 << 10
"""A tar header of another kind (times, long names) beside a file's own."""

DAMAGED = (OSError, EOFError, zlib.error, tarfile.TarError, ValueError)


def unpack(path: Path, root: Path) -> None:
    """Write an archive's files below `root`; anything that no bundle holds is refused."""
    plain = root.with_name(f"{root.name}.tar")
    try:
        _inflate(path, plain)
        _check_records(path, plain)
        with tarfile.open(plain, "r:") as archive:
            for entry in archive:
                _write(path, archive, entry, root)
    except DAMAGED as error:
        raise UserError(f"{path} is not a readable bundle: {error}") from error
    finally:
        plain.unlink(missing_ok=True)


def _inflate(path: Path, plain: Path) -> None:
    """Unpack the gzip layer, as long as it grows like text."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    limit = min(TOTAL_BYTES, RATIO * path.stat().st_size + ALLOWANCE)
    total = 0
    with gzip.open(path) as packed, plain.open("wb") as out:
        while block := packed.read(1 << 20):
            total += len(block)
            if total > limit:
                raise UserError(
                    f"{path}: {path.stat().st_size:,} bytes unpack to more than {limit:,}: this is a "
                    "bomb and no bundle"
                )
            out.write(block)


def _check_records(path: Path, plain: Path) -> None:
    """Refuse a tar whose headers promise what a reader should not even begin with."""
    size = plain.stat().st_size
    count = 0
    with plain.open("rb") as file:
        while len(record := file.read(RECORD)) == RECORD and any(record):
            count += 1
            if count > 2 * FILES:
                raise UserError(f"{path}: more than {FILES:,} files: no bundle")
            entry = tarfile.TarInfo.frombuf(record, "utf-8", "surrogateescape")
            kind, limit = entry.type, FILE_BYTES
            if kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
                limit = HEADER_BYTES
            elif kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise UserError(
                    f"{path} holds '{printable(entry.name, 80)}', which is no plain file (a link, a "
                    "device, a sparse file...): do not use it"
                )
            if not 0 <= entry.size <= min(limit, size - file.tell()):
                raise UserError(
                    f"{path}: '{printable(entry.name, 80)}' claims {entry.size:,} bytes: truncated, "
                    "or made to mislead"
                )
            file.seek(-(-entry.size // RECORD) * RECORD, os.SEEK_CUR)


def _write(path: Path, archive: tarfile.TarFile, entry: tarfile.TarInfo, root: Path) -> None:
    parts = PurePosixPath(entry.name)
    shown = printable(entry.name, 80)
    outside = parts.is_absolute() or ".." in parts.parts or not parts.parts
    if outside or not entry.isreg() or entry.issparse() or "\\" in entry.name:
        raise UserError(f"{path} holds '{shown}', which no bundle does: do not use it")
    long = len(parts.parts) > DEPTH or len(entry.name) > NAME_LENGTH
    if long or not entry.name.isprintable():
        raise UserError(f"{path} holds '{shown}', a name that no bundle has: do not use it")
    target = root / entry.name
    if target.exists() or any(folder.is_file() for folder in target.parents):
        raise UserError(f"{path} holds '{shown}' twice: do not use it")
    content = archive.extractfile(entry)
    if content is None:
        raise UserError(f"{path} holds '{shown}' without content: do not use it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        _copy(content, out)


def _copy(content: object, out: BinaryIO) -> None:
    shutil.copyfileobj(content, out, 1 << 20)  # pyright: ignore[reportArgumentType]
