"""A bundle checked: its files, its runs, its table, and who signed it."""

import hashlib
import json
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mimbench.benchmarks.manifest import DEFAULT_FILE, Manifest, load_manifest
from mimbench.benchmarks.records import files_of
from mimbench.benchmarks.run_config import CONFIG_FILE, LOG_FILE, RESULT_FILE
from mimbench.results import legacy
from mimbench.results.gap import GAP_FILE
from mimbench.results.record import EDITED, Result, read_result
from mimbench.suite.sharing.recomputing import UNFIT, Checked, check_run
from mimbench.suite.sharing.signing import signed_by
from mimbench.suite.sharing.unpacking import unpack
from mimbench.system.config import load_yaml
from mimbench.system.errors import UserError, printable
from mimbench.system.files import file_digest
from mimbench.tables.formats import as_json
from mimbench.tables.table import make_table
from mimbench.training.curve import CURVE_FILE

HEAD, SIGNATURE, TABLE, BENCHMARKS = (
    "bundle.json",
    "bundle.json.sig",
    "table.json",
    "benchmarks.yaml",
)
VERSION = 2
RUN_FILES = (RESULT_FILE, CONFIG_FILE, LOG_FILE, CURVE_FILE, GAP_FILE)
JSON_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is known of a bundle."""

    digest: str
    """SHA-256 of its list of files: published beside it, it stands for everything in it."""
    faults: tuple[str, ...]
    """What contradicts itself; the bundle is not what it says."""
    unproven: tuple[str, ...]
    """What nothing in it determines: true only if the signature or the published digest is."""
    signer: str = ""
    """Who signed it, as far as that was asked."""


def verify_bundle(
    path: Path,
    *,
    benchmarks: Path = DEFAULT_FILE,
    digest: str = "",
    signers: Path | None = None,
) -> Verification:
    """Return everything in which a bundle is not what it says; the arguments are `opened_bundle`'s."""
    with opened_bundle(path, benchmarks=benchmarks, digest=digest, signers=signers) as (_, found):
        return found


@contextmanager
def opened_bundle(
    path: Path,
    *,
    benchmarks: Path = DEFAULT_FILE,
    digest: str = "",
    signers: Path | None = None,
) -> Iterator[tuple[Path, Verification]]:
    """Yield a folder with a bundle's files, and everything in which it is not what it says.

    Args:
        path: The archive.
        benchmarks: The reader's own manifest: its tasks may be imported, its published rows count.
        digest: The digest that was published with the bundle.
        signers: A public key or an allowed_signers file; the bundle must be signed by one of them.
    """
    own = load_manifest(benchmarks)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "bundle"
        root.mkdir()
        unpack(path, root)
        if not (root / HEAD).is_file():
            raise UserError(f"{path} is not a bundle: it lacks {HEAD}")
        found = Checked()
        text = (root / HEAD).read_bytes()
        sealed = hashlib.sha256(text).hexdigest()
        signer = _check_signature(found, root, text, signers)
        found.expect(
            not digest or sealed == digest.lower(), f"its digest is {sealed}, not {digest}"
        )
        _check_files(found, root, _json(root / HEAD))
        if manifest := _manifest(found, root):
            results = _check_runs(found, root, manifest, own.tasks)
            _check_table(found, root, results, manifest)
            _check_published(found, manifest, own)
        yield (
            root,
            Verification(
                digest=sealed,
                faults=tuple(found.faults),
                unproven=tuple(found.unproven),
                signer=signer,
            ),
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > JSON_BYTES:
            raise UserError(f"{path.name} is larger than any bundle's")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not readable: {printable(str(error), 120)}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path.name} should hold an object")
    return value


def _check_signature(found: Checked, root: Path, text: bytes, signers: Path | None) -> str:
    if signers is None:
        return ""
    if not (root / SIGNATURE).is_file():
        found.faults.append("it is not signed")
        return ""
    try:
        return signed_by(text, (root / SIGNATURE).read_bytes(), signers)
    except UserError as error:
        found.faults.append(str(error))
        return ""


def _check_files(found: Checked, root: Path, head: Mapping[str, Any]) -> None:
    listed = head.get("files")
    if not isinstance(listed, dict):
        raise UserError(f"{HEAD} lists no files")
    if head.get("version") == 1:
        found.unproven.append(
            "packed by an older mimbench: its table is not among its hashed files"
        )
        listed = {**listed, TABLE: file_digest(root / TABLE) if (root / TABLE).is_file() else ""}
    elif head.get("version") != VERSION:
        raise UserError(
            f"a bundle of version {head.get('version')!r}, this mimbench reads {VERSION}"
        )
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    present -= {HEAD, SIGNATURE}
    found.faults += [f"{printable(n, 200)} is missing" for n in sorted(listed.keys() - present)]
    found.faults += [f"{printable(n, 200)} was added" for n in sorted(present - listed.keys())]
    for name in sorted(present & listed.keys()):
        found.expect(file_digest(root / name) == listed[name], f"{name} was changed")


def _manifest(found: Checked, root: Path) -> Manifest | None:
    """Return the bundle's own manifest, if it leads nowhere outside."""
    try:
        named = load_yaml(root / BENCHMARKS).get("reference_file")
        parts = PurePosixPath(named) if isinstance(named, str) else None
        inside = parts and not parts.is_absolute() and ".." not in parts.parts
        if named is not None and not inside:
            raise UserError(f"{BENCHMARKS} names a reference file outside of the bundle")
        return load_manifest(root / BENCHMARKS)
    except UserError as error:
        found.faults.append(str(error).replace(f"{root}/", ""))
    except UNFIT as error:
        found.faults.append(f"{BENCHMARKS} is damaged: {printable(str(error), 120)}")
    return None


def _check_runs(
    found: Checked, root: Path, manifest: Manifest, tasks: Collection[str]
) -> list[Result]:
    results = []
    known = {TABLE, BENCHMARKS, HEAD, SIGNATURE, manifest.reference_file}
    seen: dict[tuple[str, ...], tuple[str | None, str]] = {}
    for path in sorted((root / "runs").glob(f"*/*/{RESULT_FILE}")):
        folder = path.parent
        where = folder.relative_to(root).as_posix()
        try:
            result = read_result(path)
            known |= {f"{where}/{name}" for name in RUN_FILES}
            known |= {f.relative_to(root).as_posix() for f in files_of(folder, result)}
            found.expect(result.error != EDITED, f"{where}: {EDITED}")
            found.add(where, check_run(folder, result, manifest, tasks))
            if result.gap:
                found.unproven.append(f"{where}: its recipe gap")
        except UserError as error:
            found.faults.append(f"{where}: {str(error).replace(f'{root}/', '')}")
            continue
        except UNFIT as error:
            found.faults.append(f"{where}: damaged: {type(error).__name__}: {error}"[:300])
            continue
        results.append(result)
        kept = tuple(file_digest(file) for file in files_of(folder, result))
        weights, twin = seen.setdefault(kept or (where,), (result.weights.get("digest"), where))
        if weights != result.weights.get("digest"):
            found.unproven.append(f"{where}: other weights with the very outcomes of {twin}")
    found.expect(bool(results), "it holds no results")
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    for name in sorted(present - known):
        found.faults.append(f"{printable(name, 200)} belongs to no run")
    return results


def _check_table(found: Checked, root: Path, results: list[Result], manifest: Manifest) -> None:
    try:
        same = as_json(make_table(results, manifest)).encode() == (root / TABLE).read_bytes()
        if not same and results and all(r.format == legacy.FORMAT for r in results):
            found.unproven.append(
                "an older mimbench made the table; results are checked, it is not"
            )
        else:
            found.expect(same, "the table does not follow from the results")
    except OSError:
        found.faults.append(f"{TABLE} is missing")
    except (UserError, *UNFIT) as error:
        found.faults.append(f"no table follows from the results: {printable(str(error), 200)}")


def _check_published(found: Checked, manifest: Manifest, own: Manifest) -> None:
    """Published rows and recipes that are not the reader's own: another version, or an edit."""
    for name in sorted(manifest.benchmarks.keys() & own.benchmarks.keys()):
        if manifest.benchmarks[name] != own.benchmarks[name]:
            found.unproven.append(f"the recipe of {name} is not the one of this mimbench")
    if missing := set(map(repr, manifest.references)) - set(map(repr, own.references)):
        found.unproven.append(f"{len(missing)} published rows are not those of this mimbench")
