"""Fetching: the one place that uses the network, and only for what a user named.

What arrives lies as Hugging Face's own library lays it, so that either finds what the other fetched.
A revision's reference is written last: a name resolves once everything that belongs to it is there.
"""

import json
import os
import re
import urllib.error
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mimbench.checkpoints.names.caches import (
    REVISION,
    hub_home,
    repository_folder,
    snapshot,
    torch_cache,
)
from mimbench.checkpoints.names.download import Wanted, download, fault, open_url
from mimbench.checkpoints.names.located import HUB, WEIGHTS, HubName, several
from mimbench.checkpoints.names.registry import PREFIX as TIMM
from mimbench.checkpoints.names.registry import default_tag, look_up
from mimbench.checkpoints.reading.content import SETTINGS, SINGLE
from mimbench.system.errors import UserError, printable
from mimbench.system.files import write_text
from mimbench.system.listing import first_few
from mimbench.system.pickles import limits

DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
"""torch's habit: a file's name ends with the beginning of its digest."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    name: str
    size: int
    blob: str
    """SHA-256 of large files, git's digest of small ones; the cache keeps the file under it."""

    def wanted(self, url: str) -> Wanted:
        """Return what to download."""
        kind = "sha256" if len(self.blob) == 64 else "git_sha1"
        return Wanted(url=url, size=self.size, **{kind: self.blob})


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at a revision."""

    revision: str
    license: str
    entries: Mapping[str, HubFile]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What a name became."""

    name: str
    path: Path
    revision: str
    license: str
    notes: tuple[str, ...] = ()


def fetch(name: str) -> Fetched:
    """Bring what a name stands for onto this machine; return where it lies."""
    if name.startswith(HUB):
        return _from_hub(HubName.parse(name), name)
    if name.startswith(TIMM):
        return _of_timm(name)
    raise UserError(f"{name}: expected timm:NAME[.TAG] or hf:ORG/NAME")


def endpoint() -> str:
    """Return the hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token() -> str:
    """Return the user's token, where there is one."""
    if said := os.environ.get("HF_TOKEN"):
        return said.strip()
    kept = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token")
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


def _of_timm(text: str) -> Fetched:
    name, _, revision = text.removeprefix(TIMM).partition("@")
    known = look_up(name)
    notes = (default_tag(known),) if known.others else ()
    if known.repository:
        hub = HubName(repository=known.repository, **({"revision": revision} if revision else {}))
        found = _from_hub(hub, known.name, settings=False)
        said = found.license or known.license
        return Fetched(
            name=known.name, path=found.path, revision=found.revision, license=said, notes=notes
        )
    if not known.url or revision:
        raise UserError(f"{text}: timm names no address to fetch it from")
    path = torch_cache() / known.file
    hashed = HASH_IN_NAME.search(known.file)
    wanted = Wanted(url=known.url, sha256=hashed.group(1) if hashed else "")
    if not path.is_file() or fault(path, wanted):
        _explained(wanted, path, known.name)
    return Fetched(name=known.name, path=path, revision="", license=known.license, notes=notes)


def _from_hub(name: HubName, asked: str, *, settings: bool = True) -> Fetched:
    listing = _listing(name)
    chosen = _chosen(name, listing, settings=settings)
    for entry in chosen:
        _place(name.repository, listing.revision, entry, asked)
    if not REVISION.fullmatch(name.revision):
        write_text(repository_folder(name.repository) / "refs" / name.revision, listing.revision)
    folder = snapshot(name.repository, listing.revision)
    return Fetched(
        name=asked,
        path=folder / name.file if name.file else folder,
        revision=listing.revision,
        license=listing.license,
    )


def _place(repository: str, revision: str, entry: HubFile, asked: str) -> None:
    """Download a file among the blobs, and link to it from the snapshot."""
    blob = repository_folder(repository) / "blobs" / entry.blob
    link = snapshot(repository, revision) / entry.name
    url = f"{endpoint()}/{repository}/resolve/{revision}/{urllib.parse.quote(entry.name)}"
    if not blob.is_file() or fault(blob, entry.wanted(url)):
        _explained(entry.wanted(url), blob, asked)
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or link.exists():
        link.unlink()
    link.symlink_to(os.path.relpath(blob, link.parent))


def _explained(wanted: Wanted, path: Path, asked: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(wanted, path, token=token() if wanted.url.startswith(endpoint()) else "")
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(asked, wanted.url, error)) from error


def _refusal(asked: str, url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return (
            f"{asked}: {url} asks for a login ({error.code}): accept the model's licence on its page, then "
            "set HF_TOKEN to a token of yours, and fetch again (the hub also answers so where no such "
            "model exists)"
        )
    if error.code == 404:
        return f"{asked}: {url} does not exist; check the name and the revision"
    return (
        f"{asked}: {url} answered {error.code} {printable(str(error.reason), 80)}; try again later"
    )


def _chosen(name: HubName, listing: Listing, *, settings: bool) -> list[HubFile]:
    """Return the files to fetch: the weights, safetensors if there are any, and their settings."""
    entries = listing.entries
    if name.file:
        if name.file not in entries:
            held = [f for f in entries if f.endswith(WEIGHTS)]
            raise UserError(f"{name.name}: holds no {name.file}; its weights are {first_few(held)}")
        return [entries[name.file]]
    beside = [entries[file] for file in SETTINGS if file in entries] if settings else []
    for single in SINGLE:
        if single in entries:
            return [*beside, entries[single]]
        if (index := f"{single}.index.json") in entries:
            return [*beside, entries[index], *_shards(name, listing, entries[index])]
    held = sorted(f for f in entries if f.endswith(WEIGHTS))
    if not held:
        raise UserError(f"{name.name}: holds no weights, only {first_few(sorted(entries))}")
    if len(held) > 1:
        raise UserError(several(name, held))
    return [*beside, entries[held[0]]]


def _shards(name: HubName, listing: Listing, index: HubFile) -> list[HubFile]:
    _place(name.repository, listing.revision, index, name.name)
    text = (snapshot(name.repository, listing.revision) / index.name).read_text(encoding="utf-8")
    parts: Any = _json(text, index.name).get("weight_map")
    named = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
    absent = [part for part in named if part not in listing.entries]
    if not named or absent:
        raise UserError(f"{name.name}: {index.name} names {first_few(absent)}, which is not there")
    return [listing.entries[part] for part in named]


def _listing(name: HubName) -> Listing:
    revision = urllib.parse.quote(name.revision, safe="")
    url = f"{endpoint()}/api/models/{name.repository}/revision/{revision}?blobs=true"
    try:
        with open_url(url, token=token()) as answer:
            text = answer.read(limits.JSON_BYTES + 1).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(name.name, url, error)) from error
    found = _json(text, url)
    sha, card = str(found.get("sha")), found.get("cardData")
    if not REVISION.fullmatch(sha):
        raise UserError(f"{url}: the answer names no revision; is {endpoint()} a model hub?")
    said = card.get("license", "") if isinstance(card, dict) else ""
    entries = [e for item in _items(found) if (e := _entry(item))]
    return Listing(
        revision=sha,
        license=printable(str(said or ""), 80),
        entries={entry.name: entry for entry in entries},
    )


def _items(found: Mapping[str, Any]) -> Sequence[Any]:
    siblings = found.get("siblings")
    return siblings if isinstance(siblings, list) else ()


def _entry(item: Any) -> HubFile | None:
    """Return a file of the list; names that would leave the folder are none."""
    if not isinstance(item, dict):
        return None
    name, large = str(item.get("rfilename", "")), item.get("lfs")
    parts = PurePosixPath(name).parts
    about: Mapping[str, Any] = large if isinstance(large, dict) else item
    blob, size = str(about.get("sha256") or item.get("blobId")), about.get("size")
    safe = parts and ".." not in parts and not name.startswith("/") and name.isprintable()
    if not safe or "\\" in name or not DIGEST.fullmatch(blob) or type(size) is not int:
        return None
    return HubFile(name=name, size=size, blob=blob)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: the answer is a {type(value).__name__}, expected an object")
    return value
