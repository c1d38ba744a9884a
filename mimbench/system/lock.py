"""One process at a time in a folder, also after a crash: the kernel drops the lock with the process."""

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from mimbench.system.errors import UserError
from mimbench.system.files import sweep_parts

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


NO_LOCK = "MIMBENCH_NO_LOCK"
"""Set by --no-lock, for the processes that a run starts too."""


def work_without_locks() -> None:
    """Take no lock in this process and those that it starts."""
    os.environ[NO_LOCK] = "1"


WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


held: set[TextIO] = set()


def _leave_locks_to_parent() -> None:
    """Let go of the parent's locks in a fork: a loader's worker outlives a killed parent for seconds."""
    while held:
        held.pop().close()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


def _opened(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{error.filename} is a file, not a folder; use another --out") from error
    except OSError as error:
        raise UserError(
            f"{folder}: nothing can be written there ({error.strerror}); use another --out, or make "
            "it writable"
        ) from error


def _unlockable(folder: Path, error: OSError) -> str:
    if error.errno not in WITHOUT_LOCKS:
        return f"{folder} cannot be locked: {error.strerror}; use another --out"
    return (
        f"{folder} lies on a file system without file locks ({error.strerror}), so two runs in it "
        "would not notice each other; use another --out, or --no-lock if this is the only run"
    )


@contextmanager
def folder_lock(folder: Path, message: str) -> Iterator[None]:
    """Hold the folder's lock; if another process holds it, fail at once and say which.

    Args:
        folder: Made if absent.
        message: What the other process is doing, for the error.
    """
    with _opened(folder) as file:
        try:
            if not os.environ.get(NO_LOCK):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise UserError(
                f"{message} ({holder}); wait for it, stop it, or use another --out"
            ) from None
        except OSError as error:
            raise UserError(_unlockable(folder, error)) from error
        if left := sweep_parts(folder):
            logger.info("%s: deleted %d files of interrupted writes", folder, len(left))
        file.truncate(0)
        since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        held.add(file)
        try:
            yield
        finally:
            held.discard(file)
