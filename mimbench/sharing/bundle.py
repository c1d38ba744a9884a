"""Bundles: results, configurations, outcomes and environment in one archive that can be verified."""

import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.benchmarks.orders import LOG_FILE, ORDER_FILE, RESULT_FILE, read_order
from mimbench.benchmarks.records import files_of, outcomes_of
from mimbench.results.record import Result, protocol_digest
from mimbench.scores.outcomes import TOLERANCE
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path, file_digest
from mimbench.system.source import library_versions, source_state
from mimbench.tables.formats import as_json
from mimbench.tables.table import make_table, read_results, read_results_with_folders
from mimbench.training.curve import CURVE_FILE

logger = logging.getLogger(__name__)
PACKED = (RESULT_FILE, ORDER_FILE, LOG_FILE, CURVE_FILE)
MANIFEST, TABLE, BENCHMARKS = "bundle.json", "table.json", "benchmarks.yaml"


def write_bundle(out: Path, path: Path, benchmarks: Path = DEFAULT_FILE) -> int:
    """Pack an output folder into a .tar.gz; return how many files it holds."""
    runs = read_results_with_folders(out)
    if not runs:
        raise UserError(f"no results in {out}; name the folder that a run wrote (--out)")
    manifest = load_manifest(benchmarks)
    files = {f"runs/{f.relative_to(out).as_posix()}": f for run in runs for f in _packed(*run)}
    files[BENCHMARKS] = benchmarks
    if manifest.reference_file:
        files[manifest.reference_file] = benchmarks.parent / manifest.reference_file
    texts = {TABLE: as_json(make_table([r for _, r in runs], manifest))}
    commit, dirty = source_state()
    head = {
        "version": 1,
        "files": {name: file_digest(file) for name, file in sorted(files.items())},
        "environment": {"commit": commit, "dirty": dirty, "libraries": library_versions()},
    }
    texts[MANIFEST] = json.dumps(head, indent=2) + "\n"
    with atomic_path(path) as part, tarfile.open(part, "w:gz") as archive:
        for name, text in texts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
        for name, file in sorted(files.items()):
            archive.add(file, arcname=name, recursive=False)
    return len(files) + len(texts)


def _packed(folder: Path, result: Result) -> Iterator[Path]:
    yield from (folder / name for name in PACKED if (folder / name).is_file())
    yield from files_of(folder, result)


def verify_bundle(path: Path, benchmarks: Path = DEFAULT_FILE) -> tuple[list[str], list[str]]:
    """Return every way in which a bundle is not what it says, and the runs that kept no outcomes.

    Args:
        path: The archive.
        benchmarks: The reader's own manifest: outcomes of its tasks' own kinds may be loaded.
    """
    tasks = load_manifest(benchmarks).tasks
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        _unpack(path, root)
        faults = _check_files(root)
        if (root / "runs").is_dir():
            for folder, result in read_results_with_folders(root / "runs"):
                faults += [
                    f"{folder.relative_to(root)}: {fault}"
                    for fault in check_run(folder, result, tasks)
                ]
            faults += _check_table(root)
        return faults, unverifiable(root / "runs")


def _unpack(path: Path, root: Path) -> None:
    try:
        with tarfile.open(path, "r:gz") as archive:
            for entry in archive:
                parts = PurePosixPath(entry.name)
                if not entry.isfile() or parts.is_absolute() or ".." in parts.parts:
                    raise UserError(
                        f"{path} holds '{entry.name}', which no bundle does: do not use it"
                    )
                content = archive.extractfile(entry)
                target = root / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read() if content else b"")
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is not a readable bundle: {error}") from error
    if not (root / MANIFEST).is_file():
        raise UserError(f"{path} is not a bundle: it lacks {MANIFEST}")


def _check_files(root: Path) -> list[str]:
    listed = json.loads((root / MANIFEST).read_text())["files"]
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} - {
        MANIFEST,
        TABLE,
    }
    faults = [f"{name} is missing" for name in sorted(set(listed) - present)]
    faults += [f"{name} was added" for name in sorted(present - set(listed))]
    changed = [n for n in sorted(present & set(listed)) if file_digest(root / n) != listed[n]]
    return [*faults, *(f"{name} was changed" for name in changed)]


def check_run(folder: Path, result: Result, tasks: Collection[str]) -> list[str]:
    """Return what in a result does not follow from its configuration and outcomes.

    Args:
        folder: The run's folder.
        result: Its result.
        tasks: Tasks whose own kinds of outcomes may be loaded.
    """
    if result.status != "done":
        return []
    faults = []
    if protocol_digest(result.task, result.version, result.config) != result.protocol:
        faults.append("the protocol digest does not belong to the configuration")
    order = read_order(folder / ORDER_FILE)
    if order.weights_digest not in ("", result.weights["digest"]):
        faults.append("the order names other weights than the result")
    for kept in outcomes_of(folder, result, tasks):
        for statistic in kept.statistics():
            metric, found = statistic.metric, statistic.whole()
            stored = result.metrics.get(metric)
            stated = metric in result.intervals
            if stored is not None and stated and abs(stored - found) > TOLERANCE:
                faults.append(f"{metric} is stored as {stored:.4f}, the outcomes give {found:.4f}")
    return faults


def unverifiable(root: Path) -> list[str]:
    """Return the runs whose main metric no outcomes were kept for."""
    runs = read_results_with_folders(root)
    return [
        str(p.relative_to(root))
        for p, r in runs
        if r.status == "done" and r.main_metric not in r.intervals
    ]


def _check_table(root: Path) -> list[str]:
    table = make_table(read_results(root / "runs"), load_manifest(root / BENCHMARKS))
    same = as_json(table) == (root / TABLE).read_text(encoding="utf-8")
    return [] if same else ["the table does not follow from the results"]
