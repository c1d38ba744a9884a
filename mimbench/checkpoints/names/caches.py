"""Where Hugging Face and torch keep what was downloaded: found without either of them, and read only."""

import os
import re
from pathlib import Path

from mimbench.system.errors import UserError

REVISION = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


def cache_home() -> Path:
    """Return the folder that caches lie in by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def hub_home() -> Path:
    """Return Hugging Face's own folder; the token of a login lies in it."""
    return Path(os.environ.get("HF_HOME") or cache_home() / "huggingface").expanduser()


def hub_cache() -> Path:
    """Return the folder of the hub's repositories."""
    said = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(said).expanduser() if said else hub_home() / "hub"


def torch_cache() -> Path:
    """Return the folder that files from addresses of their own are kept in."""
    home = Path(os.environ.get("TORCH_HOME") or cache_home() / "torch").expanduser()
    return home / "hub" / "checkpoints"


def repository_folder(repository: str) -> Path:
    """Return where a repository of models lies if it was fetched."""
    return hub_cache() / f"models--{repository.replace('/', '--')}"


def revision_of(repository: str, asked: str) -> str:
    """Return the full revision that a branch or tag stood for when it was fetched; '' if never."""
    if REVISION.fullmatch(asked):
        return asked
    reference = repository_folder(repository) / "refs" / asked
    if not reference.is_file():
        return ""
    with reference.open(encoding="utf-8", errors="replace") as file:
        text = file.read(100).strip()
    if not REVISION.fullmatch(text):
        raise UserError(f"{reference}: holds no revision of 40 digits; fetch {repository} again")
    return text


def snapshot(repository: str, revision: str) -> Path:
    """Return the folder of a repository's files at a revision."""
    return repository_folder(repository) / "snapshots" / revision
