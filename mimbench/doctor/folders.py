"""Counting files where there may be a million of them."""

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the visible entries of `folder`; none if there is no such folder."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))


def image_names(folder: Path) -> list[str]:
    """Return the sorted names of the images that lie directly in `folder`."""
    return sorted(e.name for e in scan(folder) if e.name.lower().endswith(IMAGE_SUFFIXES))


def subfolder_names(folder: Path) -> list[str]:
    """Return the sorted names of the folders in `folder`."""
    return sorted(entry.name for entry in scan(folder) if entry.is_dir())


def count_files(folder: Path) -> int:
    """Return how many files lie directly in `folder`."""
    return sum(entry.is_file() for entry in scan(folder))
