"""Bundles: results, configurations, outcomes and environment in one archive that can be verified."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.benchmarks.records import files_of
from mimbench.results.record import Result
from mimbench.suite.sharing.signing import sign
from mimbench.suite.sharing.verifying import BENCHMARKS, HEAD, RUN_FILES, SIGNATURE, TABLE, VERSION
from mimbench.system.errors import UserError
from mimbench.system.files import atomic_path
from mimbench.system.source import library_versions, source_state
from mimbench.tables.formats import as_json
from mimbench.tables.table import make_table, read_results_with_folders


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A bundle that was written."""

    files: int
    digest: str
    """SHA-256 of its list of files; publish it: whoever has it notices any change."""


def write_bundle(
    out: Path,
    path: Path,
    benchmarks: Path = DEFAULT_FILE,
    *,
    key: Path | None = None,
    only: Collection[Path] | None = None,
) -> Packed:
    """Pack an output folder into a .tar.gz; the same folder gives the same bytes.

    Args:
        out: The folder that a run wrote.
        path: The archive.
        benchmarks: The manifest that the run used.
        key: An SSH key to sign with.
        only: Folders of the runs to pack; all if None.
    """
    runs = [(p, r) for p, r in read_results_with_folders(out) if only is None or p in only]
    if not runs:
        raise UserError(f"no results in {out}; name the folder that a run wrote (--out)")
    manifest = load_manifest(benchmarks)
    files = {
        f"runs/{f.relative_to(out).as_posix()}": f.read_bytes() for r in runs for f in _packed(*r)
    }
    files[BENCHMARKS] = benchmarks.read_bytes()
    if manifest.reference_file:
        named = Path(manifest.reference_file)
        if named.is_absolute() or ".." in named.parts:
            raise UserError(f"{benchmarks}: reference_file must lie below its folder to be packed")
        files[manifest.reference_file] = (benchmarks.parent / manifest.reference_file).read_bytes()
    files[TABLE] = as_json(make_table([r for _, r in runs], manifest)).encode()
    commit, dirty = source_state()
    head = {
        "version": VERSION,
        "files": {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)},
        "environment": {"commit": commit, "dirty": dirty, "libraries": library_versions()},
    }
    text = (json.dumps(head, indent=2) + "\n").encode()
    first = {HEAD: text}
    if key is not None:
        first[SIGNATURE] = sign(text, key)
    write_archive(path, first | dict(sorted(files.items())))
    return Packed(files=len(first) + len(files), digest=hashlib.sha256(text).hexdigest())


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """Write files into a .tar.gz that says nothing of the time or the machine."""
    with (
        atomic_path(path) as part,
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _packed(folder: Path, result: Result) -> Iterator[Path]:
    yield from (folder / name for name in RUN_FILES if (folder / name).is_file())
    yield from files_of(folder, result)
