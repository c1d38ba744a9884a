"""What earlier runs found, so that an edit costs only the mutants it may concern."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.mutation.places import ROOT, source_path
from bench.mutation.reach import FileReach, as_json, digest_of
from bench.mutation.trials import Verdict
from mimbench.system.files import write_json

FILE = ROOT / ".mutation" / "memory.json"


class KeptResults:
    """Reach by test file and verdicts by mutant, each under the digest of what it depends on."""

    def __init__(self, path: Path = FILE, *, fresh: bool = False) -> None:
        self.path = path
        held = {} if fresh or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))
        self.reach: dict[str, Any] = held.get("reach", {})
        self.verdicts: dict[str, Any] = held.get("verdicts", {})

    def keep_reach(self, path: str, found: FileReach) -> None:
        """Store what a test file enters."""
        self.reach[path] = as_json(found)
        self.save()

    def verdict(self, key: str, module: str, nodes: Sequence[tuple[str, float]]) -> Verdict | None:
        """Return what was found, if neither the module nor the tests that decided have changed."""
        held = self.verdicts.get(key)
        if held is None:
            return None
        verdict = Verdict(**held["verdict"])
        return verdict if held["digest"] == self._digest(verdict, module, nodes) else None

    def keep(
        self, key: str, module: str, nodes: Sequence[tuple[str, float]], verdict: Verdict
    ) -> None:
        """Store a verdict."""
        digest = self._digest(verdict, module, nodes)
        self.verdicts[key] = {"digest": digest, "verdict": asdict(verdict)}

    def save(self) -> None:
        """Write everything."""
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, {"reach": self.reach, "verdicts": self.verdicts})

    def _digest(self, verdict: Verdict, module: str, nodes: Sequence[tuple[str, float]]) -> str:
        """A kill stands on the test that killed; survival on all that ran, by name and content."""
        by = [verdict.by] if verdict.by and verdict.outcome == "killed" else [n for n, _ in nodes]
        files = {ROOT / name.partition("::")[0] for name in by}
        names = "" if verdict.outcome == "killed" else "|".join(sorted(by))
        return f"{digest_of([source_path(module)])} {digest_of(files)} {names}"
