"""Files from the network, whole or not at all: an interrupted download goes on where it stopped."""

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mimbench.system.errors import UserError, printable
from mimbench.system.lock import folder_lock
from mimbench.system.progress import Progress

BLOCK = 1 << 20
PATIENCE = 60.0
"""Seconds that a silent server is waited for."""
SPARE = 64 << 20
"""Bytes of the disk that are left alone."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A file at an address, and what is known of it beforehand."""

    url: str
    size: int | None = None
    sha256: str = ""
    """The whole digest, or the beginning that torch's file names hold."""
    git_sha1: str = ""
    """How git names the content; the hub says this of small files."""


def open_url(url: str, *, token: str = "", start: int = 0) -> Any:
    """Return the open answer of a server; the token never follows a redirection to another host."""
    request = urllib.request.Request(url, headers={"User-Agent": "mimbench"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        return urllib.request.urlopen(request, timeout=PATIENCE)
    except urllib.error.HTTPError:
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: no answer ({reason}); is this machine online?") from error


def download(wanted: Wanted, path: Path, *, token: str = "") -> None:
    """Put a file at `path` once every byte is there and its digest is right."""
    if not wanted.url.startswith(("https://", "http://")):
        raise UserError(f"{wanted.url}: only http and https are fetched")
    part = path.with_name(f"{path.name}.incomplete")
    with folder_lock(path.parent, f"another process is fetching into {path.parent}"):
        try:
            _fill(part, wanted, token)
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            kept = part.stat().st_size if part.is_file() else 0
            raise UserError(
                f"{wanted.url}: stopped after {kept:,} bytes ({error}); the same command goes on there"
            ) from error
        if problem := fault(part, wanted):
            part.unlink()
            raise UserError(f"{wanted.url}: {problem}; deleted, fetch it again")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)


def _fill(part: Path, wanted: Wanted, token: str) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have and have == wanted.size:
        return
    if wanted.size is not None and have > wanted.size:
        have = 0
    with open_url(wanted.url, token=token, start=have) as answer:
        if answer.status != 206:  # the server sends all of it
            have = 0
        length = int(answer.headers.get("Content-Length") or 0)
        total = wanted.size or have + length
        if (free := shutil.disk_usage(part.parent).free) < total - have + SPARE:
            raise UserError(
                f"{part.parent}: {(total - have) / 1e9:.2f} GB to fetch, {free / 1e9:.2f} GB free; make "
                "room, or move the cache (HF_HOME, TORCH_HOME)"
            )
        bar = Progress(
            f"fetch {Path(wanted.url).name} (MB)", max(1, total // BLOCK), start=have // BLOCK
        )
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while block := answer.read(BLOCK):
                file.write(block)
                bar.step(len(block) // BLOCK)
        bar.close()
    if length and part.stat().st_size < have + length:
        raise OSError("the connection closed early")


def fault(path: Path, wanted: Wanted) -> str:
    """Return what is wrong with a file that was fetched, or ''."""
    size = path.stat().st_size
    if wanted.size is not None and size != wanted.size:
        return f"holds {size:,} bytes, the server announced {wanted.size:,}"
    digests: Mapping[str, Callable[[], str]] = {
        wanted.sha256: lambda: _digest(path, hashlib.sha256()),
        wanted.git_sha1: lambda: _digest(path, hashlib.sha1(b"blob %d\0" % size)),
    }
    for expected, compute in digests.items():
        if expected and not (found := compute()).startswith(expected):
            return f"its digest is {found[: len(expected)]}, expected {printable(expected)}"
    return ""


def _digest(path: Path, total: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(4 * BLOCK):
            total.update(block)
    return total.hexdigest()
