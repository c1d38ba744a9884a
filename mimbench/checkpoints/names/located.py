"""From what a user writes for a checkpoint to a file or folder on this machine, without network."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mimbench.checkpoints.names.caches import (
    MAIN,
    hub_cache,
    repository_folder,
    revision_of,
    snapshot,
    torch_cache,
)
from mimbench.checkpoints.names.registry import PREFIX as TIMM
from mimbench.checkpoints.names.registry import Pretrained, default_tag, look_up
from mimbench.checkpoints.reading.content import SINGLE
from mimbench.system.errors import UserError
from mimbench.system.listing import first_few

HUB = "hf:"
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".th", ".tar", ".ckpt")
PART = r"[A-Za-z0-9][\w.-]*"
HUB_NAME = re.compile(
    rf"(?P<repository>{PART}/{PART})(?P<file>(/{PART})*)(@(?P<revision>{PART}(/{PART})*))?"
)
FETCH = "python -m mimbench fetch"


class NotFetchedError(UserError):
    """A name whose weights are not on this machine."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{name} is not on this machine ({where}); get it with: {command(name)}")
        self.name, self.where = name, where


def command(*names: str) -> str:
    """Return the command that fetches names."""
    return f"{FETCH} {' '.join(map(shlex.quote, names))}"


@dataclass(frozen=True, kw_only=True)
class Located:
    """A checkpoint on this machine."""

    path: Path
    origin: str = ""
    """The name it was found by, with tag and revision; '' for a path."""
    label: str = ""
    """Short name for tables, where a path's own says nothing."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What is known of a bare file by its name, in the form of a folder's `config.json`."""
    notes: tuple[str, ...] = ()

    def spoken(self, text: str) -> str:
        """Return a message in the user's terms: the name in place of a cache's path."""
        return text.replace(str(self.path), self.origin) if self.origin else text


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository on the hub, one file of it where it has several networks, at a revision."""

    repository: str
    file: str = ""
    revision: str = MAIN

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Return the parts of `hf:ORG/NAME[/FILE][@REVISION]`."""
        found = HUB_NAME.fullmatch(text.removeprefix(HUB))
        if found is None or ".." in text:
            raise UserError(
                f"{text}: expected hf:ORG/NAME, with /FILE behind it for one of several files, and "
                "@REVISION for another than main"
            )
        return cls(
            repository=found["repository"],
            file=found["file"].removeprefix("/"),
            revision=found["revision"] or MAIN,
        )

    @property
    def name(self) -> str:
        """The name as a user would write it."""
        at = f"@{self.revision}" if self.revision != MAIN else ""
        return HUB + "/".join(filter(None, (self.repository, self.file))) + at


def named(checkpoint: Path | str) -> bool:
    """Return whether this is a name to look up, not a path."""
    return str(checkpoint).startswith((TIMM, HUB)) and not Path(checkpoint).exists()


def locate(checkpoint: Path | str) -> Located:
    """Return where a checkpoint lies; what is not on this machine is a `NotFetchedError`."""
    if not named(checkpoint):
        return Located(path=Path(checkpoint))
    text = str(checkpoint)
    return _on_hub(HubName.parse(text)) if text.startswith(HUB) else _of_timm(text)


def present(checkpoint: Path | str) -> bool:
    """Return whether a checkpoint is still on this machine."""
    try:
        return locate(checkpoint).path.exists()
    except NotFetchedError:
        return False


def require_all(checkpoints: Sequence[Path | str]) -> None:
    """Look every name up, and name all that are missing at once, with one command."""
    missing: dict[str, NotFetchedError] = {}
    for checkpoint in checkpoints:
        try:
            locate(checkpoint)
        except NotFetchedError as error:
            missing[error.name] = error
    if len(missing) == 1:
        raise next(iter(missing.values()))
    if missing:
        where = "; ".join(f"{name}: {error.where}" for name, error in missing.items())
        raise UserError(
            f"{len(missing)} names are not on this machine ({where}); get them with: {command(*missing)}"
        )


def _on_hub(name: HubName) -> Located:
    revision = revision_of(name.repository, name.revision)
    folder = snapshot(name.repository, revision)
    if not revision or not folder.is_dir():
        raise NotFetchedError(name.name, _missing(name, revision))
    pinned = HubName(repository=name.repository, file=name.file, revision=revision)
    label = PurePosixPath(name.file or name.repository).name
    if name.file:
        if not (folder / name.file).is_file():
            raise NotFetchedError(name.name, f"the snapshot {revision[:12]} lacks {name.file}")
        return Located(path=folder / name.file, origin=pinned.name, label=label)
    return Located(path=weights_of(folder, name), origin=pinned.name, label=label)


def weights_of(folder: Path, name: HubName) -> Path:
    """Return the folder itself where it holds weights as Hugging Face writes them, else its one file."""
    if any((folder / f).is_file() or (folder / f"{f}.index.json").is_file() for f in SINGLE):
        return folder
    files = sorted(p for p in folder.rglob("*") if p.suffix in WEIGHTS and p.is_file())
    if not files:
        held = first_few(sorted(p.name for p in folder.iterdir()))
        raise NotFetchedError(name.name, f"its snapshot holds no weights, only {held}")
    if len(files) > 1:
        raise UserError(several(name, [str(p.relative_to(folder)) for p in files]))
    return files[0]


def several(name: HubName, files: Sequence[str]) -> str:
    """Return that a repository holds several networks, and how one is named."""
    example = HubName(repository=name.repository, file=files[0], revision=name.revision)
    return f"{name.name} holds {len(files)} files of weights ({first_few(files)}); name one: {example.name}"


def _missing(name: HubName, revision: str) -> str:
    folder = repository_folder(name.repository)
    if not folder.is_dir():
        return f"nothing of {name.repository} lies in {hub_cache()}"
    there = [p.name[:12] for p in (folder / "snapshots").glob("*")]
    asked = revision[:12] or name.revision
    return f"{folder} holds revision {first_few(sorted(there))}, not {asked}"


def _of_timm(text: str) -> Located:
    name, _, revision = text.removeprefix(TIMM).partition("@")
    known = look_up(name)
    found: dict[str, Any] = {
        "config": known.config,
        "label": known.name.removeprefix(TIMM),
        "notes": (default_tag(known),) if known.others else (),
    }
    if known.repository:
        hub = HubName(repository=known.repository, revision=revision or MAIN)
        held = revision_of(hub.repository, hub.revision)
        folder = snapshot(hub.repository, held)
        for file in SINGLE if held else ():
            if (folder / file).is_file():
                return Located(path=folder / file, origin=f"{known.name}@{held}", **found)
    if known.url and not revision and (torch_cache() / known.file).is_file():
        return Located(path=torch_cache() / known.file, origin=known.name, **found)
    at = f"@{revision}" if revision else ""
    raise NotFetchedError(known.name + at, _nowhere(known))


def _nowhere(known: Pretrained) -> str:
    """Return where weights of timm's were looked for, and which others of the network are there."""
    places = [str(repository_folder(known.repository))] if known.repository else []
    places += [str(torch_cache() / known.file)] if known.url else []
    text = f"neither {' nor '.join(places)} is there" if len(places) > 1 else f"no {places[0]}"
    others = [look_up(f"{known.architecture}.{tag}") for tag in known.others]
    kept = [o.name for o in others if o.repository and revision_of(o.repository, MAIN)]
    return f"{text}; {' and '.join(kept)} would be" if kept else text
