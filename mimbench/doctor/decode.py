"""Every image of a data set decoded once: all broken ones in one pass, in parallel, and resumable.

A run stops at the first broken image by design. This finds them all beforehand. What was decoded is
kept by name, size and time, a few hundred images a line, so a pass that was interrupted goes on, and
after a repair only the neighbours of what changed are decoded again.
"""

import contextlib
import logging
import multiprocessing
import os
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mimbench.data.lists import SUFFIXES, UNDECODABLE
from mimbench.doctor.check import Check, fault, ok
from mimbench.system.errors import UserError, printable
from mimbench.system.files import (
    append_json_line,
    cache_folder,
    json_lines,
    value_digest,
    write_text,
)
from mimbench.system.listing import and_more
from mimbench.system.progress import Progress
from mimbench.system.signals import leave_signals_to_parent

logger = logging.getLogger(__name__)

GROUP = 200
"""Images that are decoded, and remembered, together."""
SHOWN = 20
"""Broken images that the table names; the list beside the record has all."""


class ImageEntry(NamedTuple):
    """One image, a file of its own or a member of a tar file."""

    path: str
    size: int
    time: int
    member: str = ""
    start: int = 0

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.path}:{self.member}" if self.member else self.path


Broken = tuple[str, str]
"""Name and reason."""


def check_images(root: Path, jobs: int, *, fresh: bool = False) -> Check:
    """Decode every image below `root` that was not decoded before as it is now.

    Args:
        root: Of one data set or several.
        jobs: Processes that decode side by side.
        fresh: Decode all of them again.
    """
    root = root.expanduser().absolute()
    groups = [g for g in _grouped(pictures(root)) if g]
    total = sum(map(len, groups))
    if not total:
        return fault("images", f"{root} holds no images", f"ls {shlex.quote(str(root))}")
    record = cache_folder() / "decoded" / f"{value_digest(str(root))[:16]}.jsonl"
    known = {} if fresh else _read(record)
    broken: list[Broken] = []
    todo = []
    for group in groups:
        if (before := known.get(_stamp(group))) is None:
            todo.append(group)
        else:
            broken += before
    left = sum(map(len, todo))
    if left < total:
        logger.info("%s images were decoded before and are unchanged", f"{total - left:,}")
    broken += _decode_all(todo, record, total, left, jobs, fresh=fresh)
    return _finding(root, total, sorted(broken), record.with_suffix(".broken.txt"))


def pictures(root: Path) -> Iterator[ImageEntry]:
    """Yield the images below a folder in order, those in tar files too; a link's loop is walked once."""
    seen: set[str] = set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = [] if real in seen else sorted(d for d in inner if not d.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(files):
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.suffix.lower() in SUFFIXES:
                yield ImageEntry(str(path), *_size_and_time(path))
            elif path.suffix == ".tar":
                yield from _members(path)


def _members(path: Path) -> Iterator[ImageEntry]:
    try:
        _, time = _size_and_time(path)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    yield ImageEntry(str(path), member.size, time, member.name, member.offset_data)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a whole tar file: {error}; copy it again") from error


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere: decoding says so
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _grouped(images: Iterator[ImageEntry]) -> Iterator[list[ImageEntry]]:
    while group := list(islice(images, GROUP)):
        yield group


def _stamp(group: Sequence[ImageEntry]) -> str:
    return value_digest([list(picture) for picture in group])[:24]


def decode(group: Sequence[ImageEntry]) -> list[Broken]:
    """Return the images of a group that cannot be decoded, each with the reason."""
    return [(p.name, reason) for p in group if (reason := _reason(p))]


def _reason(picture: ImageEntry) -> str:
    try:
        if not picture.member:
            with Image.open(picture.path) as image:
                image.convert("RGB")
            return ""
        with tarfile.open(picture.path, "r:") as archive:
            member = tarfile.TarInfo(picture.member)
            member.size, member.offset_data = picture.size, picture.start
            file = archive.extractfile(member)
            assert file is not None
            with Image.open(file) as image:
                image.convert("RGB")
    except UNDECODABLE as error:
        return printable(str(error).replace(picture.path, "the file") or type(error).__name__, 160)
    return ""


def _decode_all(
    groups: Sequence[list[ImageEntry]],
    record: Path,
    total: int,
    left: int,
    jobs: int,
    *,
    fresh: bool,
) -> list[Broken]:
    """Decode the groups and note each as it ends; a decoder that crashes costs only its own image."""
    broken: list[Broken] = []
    record.parent.mkdir(parents=True, exist_ok=True)
    bar = Progress("decoding", total, start=total - left)
    with record.open("w" if fresh else "a", encoding="utf-8") as file:
        for group, found in _in_processes(groups, jobs):
            broken += found
            append_json_line(file, [_stamp(group), found])
            bar.step(len(group), broken=len(broken))
    bar.close()
    return broken


def _in_processes(
    groups: Sequence[list[ImageEntry]], jobs: int
) -> Iterator[tuple[list[ImageEntry], list[Broken]]]:
    crashed: list[list[ImageEntry]] = []
    waiting = iter(groups)
    while chunk := list(islice(waiting, 100 * jobs)):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, leave_signals_to_parent) as pool:
            running: dict[Future[list[Broken]], list[ImageEntry]] = {
                pool.submit(decode, group): group for group in chunk
            }
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    group = running.pop(future)
                    try:
                        yield group, future.result()
                    except BrokenProcessPool:
                        crashed.append(group)
    for group in crashed:
        yield group, [b for picture in group for b in _alone(picture)]


def _alone(picture: ImageEntry) -> list[Broken]:
    """Decode one image in a process of its own, after a decoder crashed near it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, leave_signals_to_parent) as pool:
        try:
            return pool.submit(decode, [picture]).result()
        except BrokenProcessPool:
            return [(picture.name, "the decoder crashed")]


def _read(record: Path) -> dict[str, list[Broken]]:
    """Return stamp -> broken images; a line that says anything else is not there."""
    known: dict[str, list[Broken]] = {}
    for _, entry in json_lines(record):
        with contextlib.suppress(ValueError, TypeError):
            stamp, found = entry
            known[stamp] = [(str(name), str(reason)) for name, reason in found]
    return known


def _finding(root: Path, total: int, broken: Sequence[Broken], listed: Path) -> Check:
    if not broken:
        listed.unlink(missing_ok=True)
        return ok("images", f"all {total:,} below {root} can be decoded")
    write_text(listed, "".join(f"{name}\t{reason}\n" for name, reason in broken))
    lines = [f"# {name}: {reason}" for name, reason in broken[:SHOWN]]
    if more := and_more(len(broken), SHOWN):
        lines.append(f"# {more}")
    return fault(
        "images",
        f"{len(broken):,} of {total:,} cannot be decoded; replace them, or remove them, then check "
        f"again; all of them: {listed}",
        "\n".join([*lines, f"cut -f1 {shlex.quote(str(listed))}"]),
    )
