"""The sample data on disk: made once, verified on use, checked on demand."""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mimbench.sample.layouts import Sizes, write_classification, write_scenes
from mimbench.sample.textures import texture_bank
from mimbench.system.errors import UserError
from mimbench.system.files import CACHE, cache_folder, file_digest, write_json

logger = logging.getLogger(__name__)

GENERATOR = "mimbench-sample"
VERSION = 3
"""Raise it with every change that moves a pixel or a label."""
MANIFEST = "manifest.json"
CONTENT = {
    "classification": "5673886e175ea0286383a635eac900276753197d29242c619385009c12d85517",
    "coco": "11d7f93c38db4b6b5ec49c8652c003a939ba0cd2a8534b8d6d44ebbfc99f4b41",
    "ade": "1d9c1204a73ef208fad65f760bdb7b3e0a7736665b1fec2f7a744442e0b8dd71",
}
"""What `content_sha256` is for this version at the default sizes."""


def default_root() -> Path:
    """Return the folder of the sample data: $MIMBENCH_CACHE/sample, else the user's cache."""
    return cache_folder() / ("sample" if os.environ.get(CACHE) else f"sample-{VERSION}")


def sample_root(root: Path | None = None) -> Path:
    """Return the folder of the sample data, generating it at first use.

    Args:
        root: the folder; by default $MIMBENCH_CACHE/sample, else mimbench/sample-<version> in the
            user's cache folder.
    """
    root = Path(root) if root else default_root()
    if not _is_vacant(root):
        verify(root)
        return root
    return _make(root, Sizes())


def generate(
    root: Path,
    *,
    train_per_class: int = Sizes.train_per_class,
    val_per_class: int = Sizes.val_per_class,
    train_scenes: int = Sizes.train_scenes,
    val_scenes: int = Sizes.val_scenes,
    replace: bool = False,
) -> Path:
    """Generate the sample data in `root`, whole or not at all, and return `root`.

    Item i is the same whatever the counts. If another process finishes first, its data is used.

    Args:
        root: the folder to make; it must be absent or empty unless `replace` is true.
        train_per_class: classification pictures for each of the 10 classes.
        val_per_class: the same, for validation.
        train_scenes: pictures of the COCO and the ADE20K layout.
        val_scenes: the same, for validation.
        replace: remove sample data (also damaged or of another version) that lies in `root`.
    """
    sizes = Sizes(
        train_per_class=train_per_class,
        val_per_class=val_per_class,
        train_scenes=train_scenes,
        val_scenes=val_scenes,
    )
    if not _is_vacant(root) and not replace:
        raise UserError(f"{root} is not empty; sample data goes to a new or an empty folder")
    if not _is_vacant(root):
        _read_manifest(root)
    return _make(root, sizes, replace=replace)


def _make(root: Path, sizes: Sizes, *, replace: bool = False) -> Path:
    """Fill a folder beside `root`, then rename it: whoever finishes first wins."""
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}.", suffix=".part"))
    try:
        _fill(part, sizes)
        part.chmod(0o755)
        if replace and not _is_vacant(root):
            shutil.rmtree(root)
        _take_place(part, root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _fill(part: Path, sizes: Sizes) -> None:
    """Write all layouts and, last, the manifest."""
    begin = time.perf_counter()
    content = {"classification": write_classification(part / "classification", sizes)}
    content |= write_scenes(part / "coco", part / "ade", sizes)
    if sizes == Sizes() and content != CONTENT:
        logger.warning(
            "the sample data's content is %s, expected %s: with these versions of NumPy and SciPy "
            "it differs from the published one, and so may numbers measured on it",
            content,
            CONTENT,
        )
    files = {name: file_digest(part / name) for name in _list_files(part)}
    manifest = {
        "generator": GENERATOR,
        "version": VERSION,
        "textures": texture_bank().source,
        "sizes": asdict(sizes),
        "content_sha256": content,
        "counts": _count_by_folder(files),
        "files_sha256": files,
    }
    write_json(part / MANIFEST, manifest)
    logger.info("made %d files of sample data in %.1f s", len(files), time.perf_counter() - begin)


def _take_place(part: Path, root: Path) -> None:
    """Rename `part` to `root`; if another process was first, verify what it made."""
    try:
        part.replace(root)
    except OSError:
        if _is_vacant(root):
            raise
        logger.info("another process made the sample data in %s first: it is used", root)
        verify(root)


def make_beside(name: str, version: int, fill: Callable[[Path], None], root: Path | None) -> Path:
    """Return the folder of a further set beside the sample data, made whole at first use.

    Args:
        name: Of the set.
        version: Of its content; another version is another folder.
        fill: Writes everything into an empty folder.
        root: The folder, where it is not the usual one.
    """
    root = root or default_root().with_name(f"{default_root().name}-{name}-{version}")
    if (root / MANIFEST).is_file():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        fill(part)
        write_json(part / MANIFEST, {"generator": f"{GENERATOR}-{name}", "version": version})
        part.chmod(0o755)
        try:
            part.replace(root)
        except OSError:
            # another process was first; anything else is no set of ours
            if not (root / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def verify(root: Path) -> None:
    """Raise `UserError` unless `root` has a manifest of this version and as many files as it says."""
    manifest = _read_manifest(root)
    if manifest["version"] != VERSION:
        raise UserError(
            f"sample data in {root} has version {manifest['version']}, expected {VERSION}; "
            f"make it anew: {remedy(root)}"
        )
    found = _count_by_folder(_list_files(root))
    for folder, count in manifest["counts"].items():
        if found.get(folder, 0) != count:
            raise UserError(
                f"sample data in {root} is damaged: {folder} has {found.get(folder, 0)} files, "
                f"expected {count}; make it anew: {remedy(root)}"
            )


def check(root: Path) -> list[str]:
    """Return what is wrong with the files in `root`, by their SHA-256; an empty list means intact."""
    manifest = _read_manifest(root)
    expected, found = manifest["files_sha256"], set(_list_files(root))
    faults = [f"missing: {name}" for name in sorted(expected.keys() - found)]
    faults += [f"not ours: {name}" for name in sorted(found - expected.keys())]
    faults += [
        f"changed: {name}"
        for name in sorted(found & expected.keys())
        if file_digest(root / name) != expected[name]
    ]
    if manifest["version"] != VERSION:
        faults.append(f"version {manifest['version']}, expected {VERSION}")
    return faults


def remedy(root: Path) -> str:
    """Return the command that makes the sample data in `root` anew."""
    return f"python -m mimbench sample --out {root} --fresh"


def _read_manifest(root: Path) -> dict[str, Any]:
    """Read the manifest; a folder without one is not ours, and is never touched."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{root} is not sample data: {MANIFEST} cannot be read ({error}); "
            "expected a folder made by `python -m mimbench sample`; remove it or choose another"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("generator") != GENERATOR:
        raise UserError(f"{root} is not sample data: {MANIFEST} is not by {GENERATOR}")
    return manifest


def _is_vacant(root: Path) -> bool:
    return not root.exists() or (root.is_dir() and not any(root.iterdir()))


def _list_files(root: Path) -> list[str]:
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def _count_by_folder(names: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        folder = name.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    return counts
