"""A hostile checkpoint file: how it is written, and what may become of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ODD = [None, "text", "", [], [1], {}, {"a": 1}, True, -1, 0, 1.5, 10**9, 10**30, 10**400, "1e400",
       [10**9, 10**9], [None, None, None], ["a", "b", "c"], [0.1, 0.2], [[[[1]]]], "x" * 100_000]  # fmt: skip
"""Values where a configuration or header has something else."""

SPACES = "\x1b[2J\x1b]0;owned\x07\n\r\x08verdict ok\u202e"
"""What a name can send to a terminal."""


@dataclass(frozen=True)
class Case:
    """One hostile file: how it is written, and what may become of it."""

    kind: str
    write: Callable[[Path], Path]
    harmless: bool = False
    """It may be read, if what is read are the layout's canonical tensors."""
    layout: str = "mae-encoder"


def of_bytes(
    kind: str,
    content: bytes,
    name: str = "f.pth",
    *,
    harmless: bool = False,
    layout: str = "mae-encoder",
) -> Case:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return Case(kind, write, harmless, layout)
