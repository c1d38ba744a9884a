"""Results: one JSON file for each finished run, the only thing that a table is made from."""

import json
import logging
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mimbench.data.digest import DataDigest
from mimbench.results.gap import Gap, read_gap
from mimbench.results.legacy import upgrade
from mimbench.scores.figures import Figure
from mimbench.system.config import from_mapping, to_mapping
from mimbench.system.errors import UserError
from mimbench.system.files import value_digest, write_json
from mimbench.system.source import library_versions, source_state

logger = logging.getLogger(__name__)

NOT_AUDITED = "not audited"
"""Of weights that no format read: a module of the user's own, whose tensors nobody accounted for."""

FORMAT = 2
"""Of result.json. Files without it were written before there was a typed result of a task."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a number comes from; nothing in here may move it."""

    commit: str
    dirty: bool
    python: str
    libraries: Mapping[str, str]
    device: str
    host_cores: int
    seed: int
    seconds: float
    peak_memory_mb: float
    argv: tuple[str, ...]
    tf32: bool | None = None
    """fp32 products or convolutions were rounded to TF32; None in results from before it was kept."""


@dataclass(frozen=True, kw_only=True)
class StoredOutcomes:
    """Outcomes in a file of the run's folder."""

    kind: str
    """`package.module:Class` of the library, or `Class` of the task's own module."""
    file: str


@dataclass(frozen=True, kw_only=True)
class StoredPicture:
    """A picture in a file of the run's folder."""

    file: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark run on one checkpoint."""

    benchmark: str
    task: str
    version: int
    main_metric: str
    profile: str
    protocol: str
    """Short digest over everything that may move the number."""
    metrics: Mapping[str, float]
    config: Mapping[str, Any]
    weights: Mapping[str, str]
    """digest, format, name and which."""
    status: Literal["done", "failed"]
    provenance: Provenance
    error: str = ""
    lower_is_better: bool = False
    trains: bool = True
    """Another seed would give another number."""
    ran: Mapping[str, Any] = field(default_factory=dict)
    """Where the run was not what the protocol says: how it was, for example over how many images."""
    intervals: Mapping[str, float] = field(default_factory=dict)
    """Metric -> half width of its 95 % interval over test images."""
    interval_errors: Mapping[str, float] = field(default_factory=dict)
    """Metric -> how far other resamples would move the ends of its interval (standard error)."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """Metric -> what the table calls it in a remark."""
    built_on: Mapping[str, str] = field(default_factory=dict)
    """Folders of runs beside this one that it used -> the checksums that their results had."""
    draws: int = 1
    """Draws of the training images that the metrics are means over."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """What the user changed in the recipe."""
    data: str = ""
    """Where the data was."""
    data_digest: DataDigest = field(default_factory=DataDigest)
    """What the data was, by content."""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that follow from the model's size, filled in."""
    outcomes: Sequence[StoredOutcomes] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[StoredPicture] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the task says about its numbers: for example the micro-batch it really used."""
    format: int = FORMAT
    checksum: str = ""
    """Over everything else in the file; files from before there was one have none."""
    gap: Gap | None = None
    """What lies beside the file, in one of its own: neighbouring settings of a cheap recipe."""


Run = tuple[Path, Result]
"""A run's folder and its result."""


def protocol_digest(task: str, task_version: int, config: Mapping[str, Any]) -> str:
    """Return the short hash that two comparable results share."""
    return value_digest({"task": task, "version": task_version, "config": config})[:10]


EDITED = "edited after it was written: its checksum does not match; run the cell again"
FILE_BYTES = 64 << 20


def checksum(value: Mapping[str, Any]) -> str:
    """Return the digest over everything in a result file but the checksum itself."""
    rest = {key: item for key, item in value.items() if key != "checksum"}
    # as the file gives it back: keys are text there
    return value_digest(json.loads(json.dumps(rest)))[:16]


def write_result(path: Path, result: Result) -> None:
    """Write a result atomically, with the checksum that tells it from an edited one."""
    value = to_mapping(result)
    # in a file of its own: it is measured later, and the result stays what it was
    value.pop("gap", None)
    write_json(path, {**value, "checksum": checksum(value)})


def read_result(path: Path) -> Result:
    """Read a result strictly; a damaged file is an error that names it.

    One that was edited is a failed one, with the reason: its number is nobody's.
    """
    try:
        if not path.is_file() or path.stat().st_size > FILE_BYTES:
            raise UserError(f"{path} is no file of a result's size; delete it and run again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not a readable result: {error}; delete it and run again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a result; delete it and run again")
    edited = bool(value.get("checksum")) and value["checksum"] != checksum(value)
    if "format" not in value:
        value = upgrade(value)
    elif value["format"] != FORMAT:
        raise UserError(
            f"{path} is a result of format {value['format']}, this version reads {FORMAT}; "
            "read it with the version that wrote it"
        )
    result = from_mapping(Result, {k: v for k, v in value.items() if k != "gap"}, str(path))
    if edited:
        logger.warning("%s was %s", path, EDITED)
        return replace(result, status="failed", error=EDITED, metrics={}, intervals={})
    _check(result, path)
    return replace(result, gap=read_gap(path.parent, result.checksum))


def _check(result: Result, path: Path) -> None:
    """Refuse a result that lacks what every reader of it takes for granted."""
    lacking = [key for key in ("digest", "name") if key not in result.weights]
    if result.status == "done" and result.main_metric not in result.metrics:
        lacking.append(f"metrics.{result.main_metric}")
    bad = [name for name, value in result.metrics.items() if not math.isfinite(value)]
    if lacking or bad:
        raise UserError(
            f"{path} is not a whole result: "
            f"{'it lacks ' + ', '.join(lacking) if lacking else 'not finite: ' + ', '.join(bad)}; "
            "delete it and run again"
        )


def provenance(
    *, device: str, seed: int, seconds: float, peak_memory_mb: float, tf32: bool | None = None
) -> Provenance:
    """Return the provenance of a run that ends now; `device` is the GPU's name, empty for the CPU."""
    commit, dirty = source_state()
    return Provenance(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        libraries=library_versions(),
        device=device or platform.processor() or "cpu",
        host_cores=os.cpu_count() or 1,
        seed=seed,
        seconds=seconds,
        peak_memory_mb=peak_memory_mb,
        argv=tuple(sys.argv),
        tf32=tf32,
    )
