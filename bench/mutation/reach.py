"""Which test enters which function: what a mutant's tests are chosen by."""

import ast
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.mutation.forks import in_child
from bench.mutation.loading import Marks, Replacing
from bench.mutation.places import ROOT

QUIET = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]


@dataclass
class Node:
    """One test: how long it takes and what it enters."""

    seconds: float
    enters: list[str] = field(default_factory=list)
    """`module:place` of each function."""


@dataclass
class FileReach:
    """What one test file does without a fault."""

    nodes: dict[str, Node]
    """By pytest's node id; only those that passed."""
    loads: list[str]
    """Modules of interest that were imported at all."""
    failed: list[str]
    digest: str


def digest_of(paths: Iterable[Path]) -> str:
    """Return one digest of files' contents."""
    hashed = hashlib.sha256()
    for path in sorted(paths):
        hashed.update(hashlib.sha256(path.read_bytes()).digest() if path.is_file() else b"none")
    return hashed.hexdigest()[:16]


PATIENCE = 60.0
"""Processor seconds after which no further test of a file is watched."""


class Watching:
    """A pytest plugin that notes what each test entered."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.nodes: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self.skipped: set[str] = set()
        self.spent = 0.0

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Begin a test: forget what collection or the last one entered."""
        if self.spent > PATIENCE:
            item.session.shouldstop = "long enough"
        self.marks.take()
        self.began = sum(os.times()[:4])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test's end, or that it did not pass."""
        if report.failed:
            self.failed.append(report.nodeid)
        if report.skipped:
            self.skipped.add(report.nodeid)
        if report.when == "teardown":
            entered = [f"{module}:{place}" for module, place in self.marks.take()]
            seconds = round(sum(os.times()[:4]) - self.began, 3)
            self.spent += seconds
            self.nodes[report.nodeid] = {"seconds": seconds, "enters": entered}

    def result(self, modules: Iterable[str]) -> dict[str, Any]:
        """Return what was seen, of the tests that passed."""
        out = {*self.failed, *self.skipped}
        nodes = {name: node for name, node in self.nodes.items() if name not in out}
        loads = [name for name in modules if name in sys.modules]
        return {"nodes": nodes, "failed": self.failed, "loads": loads}


def watch_file(path: str, sources: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """Run one test file in this process, with every function of interest marked."""
    import pytest  # noqa: PLC0415

    marks = Marks()
    trees = {name: marks.instrument(name, source) for name, source in sources.items()}
    marks.open()
    Replacing(trees, marks.set).install()
    watching = Watching(marks)
    pytest.main([*QUIET, f"--basetemp={scratch / 'tmp'}", path], plugins=[watching])
    return watching.result(sources)


def reach_of(
    paths: Sequence[str],
    sources: Mapping[str, str],
    held: Mapping[str, Any],
    say: Callable[[str], None],
    keep: Callable[[str, FileReach], None],
    *,
    trust: bool = False,
) -> dict[str, FileReach]:
    """Watch each test file unless it is as it was: reach only chooses tests, it decides nothing."""
    found: dict[str, FileReach] = {}
    for path in paths:
        old = _from_json(held[path]) if path in held else None
        if old is not None and (trust or old.digest == digest_of([ROOT / path])):
            found[path] = old
            continue
        began = time.monotonic()
        ended = in_child(lambda scratch, p=path: watch_file(p, sources, scratch), cpu_seconds=400)
        if ended.said is None:
            say(f"{path}: not watched\n{ended.log[-2000:]}")
            continue
        reach = _from_json({**ended.said, "digest": ""})
        reach.digest = digest_of([ROOT / path])
        found[path] = reach
        keep(path, reach)
        lost = f", failed without a fault: {reach.failed}" if reach.failed else ""
        say(
            f"watched {path}: {len(reach.nodes)} tests, {ended.cpu:.0f} of {time.monotonic() - began:.0f} s{lost}"
        )
    return found


def as_json(reach: FileReach) -> dict[str, Any]:
    """Plain values, for the memory."""
    return asdict(reach)


def _from_json(values: Mapping[str, Any]) -> FileReach:
    nodes = {name: Node(**node) for name, node in values["nodes"].items()}
    return FileReach(nodes, list(values["loads"]), list(values["failed"]), values["digest"])


def mentions(path: str, module: str) -> bool:
    """Whether a test file imports the module by name."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return module in set(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
