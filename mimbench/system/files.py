"""Files that matter: written whole or not at all, identified by what they hold."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mimbench.system.errors import UserError

PART = ".part"
MINUTE, DAY = 60.0, 24 * 3600.0


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it is gone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make {path.parent} a folder that can be "
            "written, or choose another"
        ) from error
    part = Path(name)
    try:
        with contextlib.suppress(OSError):  # some file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def sweep_parts(folder: Path) -> list[Path]:
    """Delete what interrupted writes left under a folder; return it. Writes under way are kept.

    A writer locks its file, and the kernel drops the lock with the process. Where locks do not work,
    a file that nobody touched for a day is nobody's.
    """
    swept = []
    for part in folder.rglob(f".*{PART}"):
        if part.is_file() and not part.is_symlink() and _abandoned(part):
            part.unlink(missing_ok=True)
            swept.append(part)
    return swept


def _abandoned(part: Path) -> bool:
    found = None
    try:
        found = part.stat()
        if not found.st_size and time.time() - found.st_mtime < MINUTE:
            return False  # made just now, perhaps not locked yet
        with part.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    except OSError:
        return found is not None and time.time() - found.st_mtime > DAY
    return True


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON to `path` atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


CACHE = "MIMBENCH_CACHE"


def append_json_line(file: IO[str], value: Any) -> None:
    """Write a value as one line of JSON, at once: a process that is killed loses the last at most."""
    file.write(json.dumps(value, allow_nan=False) + "\n")
    file.flush()


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each line and its value, but for one that was cut off when the process was killed."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            yield line, json.loads(line)


def cache_folder() -> Path:
    """Return where things lie that can be made again: $MIMBENCH_CACHE, else in the user's cache."""
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "mimbench"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form: same content, same digest."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
