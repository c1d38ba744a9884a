"""Which code runs: the source tree, its commit, and the versions of the libraries under it."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository: the applications and benchmarks.yaml lie beside `mimbench`."""

LIBRARIES = [
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "faiss-gpu",
    "faiss-cpu",
    "sal-detectron2",
    "detectron2",
    "onedl-mmsegmentation",
    "mmsegmentation",
    "onedl-mmengine",
    "mmengine",
]


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that produce numbers."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def source_state() -> tuple[str, bool]:
    """Return the commit of this source tree and whether files differ from it; ('', False) without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "", False
