"""One mutant against the tests that enter its place."""

import ast
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.mutation.forks import Ended, in_child
from bench.mutation.loading import Marks, Replacing
from bench.mutation.places import source_path
from bench.mutation.reach import QUIET, FileReach, mentions

LONGEST = 5.0
"""A test of more processor seconds is not run for single mutants."""
FIRST, ALL = 1.0, 6.0
"""Seconds of the tests tried first, which kill most, and of all of them together."""

MOST = 60
"""Tests for one mutant."""
RECIPES = "tests/test_golden_recipes.py"
"""Holds every default, though it enters no function: asked about whatever is declared in a class."""

mentions_once = cache(mentions)


@cache
def functions(module: str) -> frozenset[str]:
    """Return the qualified names of a module's functions, whose entering is marked."""
    marks = Marks()
    marks.instrument(module, source_path(module).read_text(encoding="utf-8"))
    return frozenset(place for _, place in marks.names)


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant."""

    outcome: str
    """killed, timeout, survived, not reached, or undecided where pytest ran no test."""
    by: str = ""
    """The test that noticed."""
    seconds: float = 0.0
    tests: int = 0


class Chooser:
    """Picks tests for a place: those that found faults there before, then quick ones."""

    def __init__(self, reach: Mapping[str, FileReach]) -> None:
        self.reach = reach
        self.kills: Counter[tuple[str, str]] = Counter()

    def nodes(self, module: str, place: str) -> list[tuple[str, float]]:
        """Return (node id, seconds) of the tests to run, in this order."""
        entering = self._entering(module, place)
        if not entering and place not in functions(module):
            # declared in a class or at the top: whoever uses the module may notice
            entering = self._entering(module, "") or self._loading(module)
        if place not in functions(module):
            entering = [*self._recipes(module), *entering]
        order = sorted(
            dict.fromkeys(entering), key=lambda n: (-self.kills[module, n[0]], n[2], n[1])
        )
        chosen, spent = [], 0.0
        for name, seconds, _ in order:
            if seconds <= LONGEST and spent + seconds <= ALL and len(chosen) < MOST:
                chosen.append((name, seconds))
                spent += seconds
        return chosen

    def _entering(self, module: str, place: str) -> list[tuple[str, float, bool]]:
        wanted = f"{module}:{place}"
        return [
            (name, node.seconds, not mentions_once(path, module))
            for path, file in self.reach.items()
            for name, node in file.nodes.items()
            if any(
                entered == wanted or (not place and entered.startswith(wanted))
                for entered in node.enters
            )
        ]

    def _recipes(self, module: str) -> list[tuple[str, float, bool]]:
        file = self.reach.get(RECIPES)
        if file is None or module not in file.loads:
            return []
        return [(name, 0.0, False) for name in file.nodes if "every_recipe" in name]

    def _loading(self, module: str) -> list[tuple[str, float, bool]]:
        return [
            (name, node.seconds, False)
            for path, file in self.reach.items()
            if module in file.loads and mentions_once(path, module)
            for name, node in file.nodes.items()
        ]


class FirstFailure:
    """A pytest plugin that keeps the name of the test that failed."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the first one."""
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        """A module that no longer imports fails here."""
        if report.failed and not self.name:
            self.name = report.nodeid


def run_tests(trees: Mapping[str, ast.Module], names: Sequence[str], scratch: Path) -> Any:
    """Run tests in this process over replaced modules; return (pytest's code, failed test)."""
    import pytest  # noqa: PLC0415

    Replacing(trees).install()
    failure = FirstFailure()
    options = [*QUIET, "-x", "--tb=short", f"--basetemp={scratch / 'tmp'}"]
    code = int(pytest.main([*options, *names], plugins=[failure]))
    return code, failure.name


def try_tree(
    module: str, tree: ast.Module, nodes: Sequence[tuple[str, float]]
) -> tuple[Verdict, Ended | None]:
    """Run the quickest tests first, then the others, until one fails."""
    if not nodes:
        return Verdict("not reached"), None
    first = [name for i, (name, _) in enumerate(nodes) if sum(s for _, s in nodes[: i + 1]) <= FIRST][:60]  # fmt: skip
    first = first or [nodes[0][0]]
    rest = [name for name, _ in nodes if name not in set(first)]
    began, ended = time.monotonic(), None
    for names in (first, rest):
        if not names:
            continue
        expected = sum(seconds for name, seconds in nodes if name in set(names))
        ended = in_child(
            lambda scratch, n=names: run_tests({module: tree}, n, scratch),
            cpu_seconds=15 + 4 * expected,
        )
        seconds = round(time.monotonic() - began, 1)
        if ended.code is None:
            return Verdict("timeout", names[0], seconds, len(nodes)), ended
        code, by = ended.said or (1, "the process ended")
        if code == 4 and not by:  # names of tests that a fault has renamed: run their files
            files = sorted({name.partition("::")[0] for name in names})
            ended = in_child(
                lambda scratch, f=files: run_tests({module: tree}, f, scratch), cpu_seconds=120
            )
            code, by = ended.said or (1, "the process ended")
        if code != 0 and not by:  # pytest itself did not get to a test: that says nothing
            return Verdict("undecided", f"pytest ended with {code}", seconds, len(nodes)), ended
        if code != 0:
            return Verdict("killed", by, seconds, len(nodes)), ended
    return Verdict("survived", "", round(time.monotonic() - began, 1), len(nodes)), ended
