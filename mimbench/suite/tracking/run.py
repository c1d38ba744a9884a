"""What is followed, and what a client has of it: both plain data, one in memory and one in the run's folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mimbench.system.files import write_json

MARK_FILE = "tracking.json"
"""In a run's folder: client -> what it has of the run."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A folder that somebody trains or evaluates in, and what clients call it."""

    folder: Path
    name: str
    group: str
    """Runs of one checkpoint share it."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Plain values."""
    ends_with_result: bool = True
    """The run is over when its result is there; without, when its process is."""
    before: Sequence[int] | None = None
    """Stamp of the configuration when the command began: a cell writes it anew when it starts."""


@dataclass(frozen=True, kw_only=True)
class SentMark:
    """What a client has of a run."""

    id: str
    """The client's name of the run."""
    step: int = -1
    """The last step of the curve that it has for certain."""
    sending: int = -1
    """The last step of what was being sent; a process that was killed leaves it beyond `step`."""
    result: str = ""
    """Digest of the result file that it has."""


def read_mark(folder: Path, client: str) -> SentMark | None:
    """Return what a client has of the run in a folder; None where it knows nothing of it."""
    found = _marks(folder).get(client)
    return SentMark(**found) if found else None


def write_mark(folder: Path, client: str, mark: SentMark) -> None:
    """Keep what a client has of the run."""
    write_json(folder / MARK_FILE, {**_marks(folder), client: asdict(mark)})


def _marks(folder: Path) -> dict[str, Any]:
    path = folder / MARK_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def stamp(path: Path) -> list[int] | None:
    """Return what changes with a file; None where there is none."""
    if not path.is_file():
        return None
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def shareable(value: Any) -> Any:
    """Return a configuration without the machine and without where things lie on it."""
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if k not in ("machine", "data")}
        # the data section of a pretraining says which images, the data of a task where they lie
        if isinstance(value.get("data"), Mapping):
            kept["data"] = value["data"]
        return {str(k): shareable(v) for k, v in kept.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [shareable(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value
