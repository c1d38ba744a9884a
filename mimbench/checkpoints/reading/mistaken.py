"""What a path that leads to no checkpoint was probably meant to be, in a sentence that helps."""

import difflib
import itertools
import re
import shlex
from pathlib import Path

from mimbench.system.errors import printable
from mimbench.system.listing import first_few

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*):/+(?=\S)")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def absent(path: Path) -> str:
    """Return why nothing lies at a path, and what to write instead."""
    text = str(path)
    if address := ADDRESS.match(text):
        # a path has lost one of its slashes
        whole = f"{address[1]}://{text[address.end() :]}"
        return (
            "this is an address, and nothing is downloaded here; fetch it and give the file: "
            f"curl -LO {shlex.quote(printable(whole, 300))}"
        )
    if text.startswith("~"):
        return (
            "no such file: the shell replaces ~ only where it begins a word without quotes; write "
            f"{shlex.quote(str(_home(path)))}"
        )
    near = _nearest(path)
    if near:
        return f"no such file; did you mean {shlex.quote(str(near))}?"
    if HUB_NAME.fullmatch(text) and not path.suffix.lower().endswith(FILES):
        return (
            f"no such file or folder here; if it is a model on the Hugging Face hub, write hf:{text} "
            f"(python -m mimbench fetch hf:{text} brings it here)"
        )
    return "no such file or folder"


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # the home of nobody
        return path


def _nearest(path: Path) -> Path | None:
    try:
        names = [p.name for p in itertools.islice(path.parent.iterdir(), 1000)]
    except OSError:
        return None
    found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return path.parent / found[0] if found else None


def inside(folder: Path, weights: tuple[str, ...]) -> str:
    """Return what of a folder without weights of its own could be meant; '' if nothing.

    Args:
        folder: The folder.
        weights: Names of weight files that make a folder a checkpoint.
    """
    entries = sorted(itertools.islice(folder.iterdir(), 1000), key=_by_number)
    whole = [e for e in entries if e.is_dir() and any(_has(e, name) for name in weights)]
    if whole:
        listed = first_few([f"{e.name}/" for e in whole], 4)
        return f"it holds {listed}: give one of them, such as {shlex.quote(str(whole[-1]))}"
    files = [e for e in entries if e.is_file() and e.suffix.lower() in FILES]
    if files:
        listed = first_few([e.name for e in files], 4)
        return f"it holds {listed}: give the file, such as {shlex.quote(str(files[-1]))}"
    return ""


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.index.json").is_file()


def _by_number(path: Path) -> tuple[list[int], str]:
    """Order checkpoint-500 before checkpoint-1000."""
    return [int(n) for n in re.findall(r"\d{1,15}", path.name)], path.name
