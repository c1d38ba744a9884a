"""One process at a time in a folder, also after a crash: the kernel drops the lock with the process."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from mimbench.system.errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def folder_lock(folder: Path, message: str) -> Iterator[None]:
    """Hold the folder's lock; if another process holds it, fail at once and say which.

    Args:
        folder: Made if absent.
        message: What the other process is doing, for the error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise UserError(
                f"{message} ({holder}); wait for it, stop it, or use another --out"
            ) from None
        file.truncate(0)
        since = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
        file.flush()
        yield
