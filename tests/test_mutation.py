"""The mutation tool itself: it sees a fault that a test sees, and none that nothing sees."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.mutation import subjects
from bench.mutation.__main__ import equivalents
from bench.mutation.page import JudgedMutant, page, rate, summary, survivors
from bench.mutation.places import ROOT, Mutant, mutants, mutated, sample, source_path
from bench.mutation.planted import PlantedFault, planted
from bench.mutation.trials import Verdict

SUMS = '''"""Sums."""
LIMIT = 3


def added(a, b):
    """Return the sum."""
    return a + b


def dead(a):
    return a * 2


def never_entered(n):
    return n - 1
'''
TESTS = """
from sums import added, dead

def test_added():
    assert added(2, 3) == 5

def test_dead_without_a_look():
    dead(1)
"""
DRIVER = """
import json, sys
import pytest
from pathlib import Path
import bench.mutation.places as places
places.ROOT = Path.cwd()
from bench.mutation.forks import in_child
from bench.mutation.places import mutants, mutated
from bench.mutation.reach import reach_of
from bench.mutation.trials import Chooser, try_tree

source = Path("sums.py").read_text()
reach = reach_of(["test_sums.py"], {"sums": source}, {}, print, lambda *_: None)
chooser, found = Chooser(reach), {}
for mutant in mutants("sums", source):
    nodes = chooser.nodes("sums", mutant.place)
    if mutant.key in json.loads(sys.argv[1]):
        verdict, _ = try_tree("sums", mutated(mutant, source), nodes)
        found[mutant.key] = [verdict.outcome, verdict.by]
print(json.dumps(found))
"""


def keys_of(source: str, module: str = "sums") -> list[str]:
    return [mutant.key for mutant in mutants(module, source)]


def test_a_fault_that_a_test_sees_is_killed_and_one_in_dead_code_lives(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "test_sums.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    killed = "sums:added | arithmetic | a + b -> a - b"
    lives = "sums:dead | arithmetic | a * 2 -> a / 2"
    never = "sums:never_entered | constant | 1 -> 2"
    unseen = "sums | constant | 3 -> 4"
    asked = [killed, lives, never, unseen]
    assert set(asked) <= set(keys_of(SUMS))
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(asked)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        killed: ["killed", "test_sums.py::test_added"],
        lives: ["survived", ""],
        never: ["not reached", ""],
        unseen: ["survived", ""],
    }


SNIPPET = '''
def f(x, y, *, size: int = 4) -> int:
    """Twice 2."""
    if x < y and not size:
        raise ValueError(f"{x + 1} is too small")
    logger.info("%d", x + 1)
    z = g(x, y, size=size).sort()
    z[1:y] += 0.5
    return -z
'''


def test_every_operator_makes_its_faults_and_messages_are_left_alone() -> None:
    found = {m.operator + ": " + m.change for m in mutants("m", SNIPPET)}
    assert found == {
        "constant: 4 -> 5",
        "comparison: x < y -> x <= y",
        "comparison: x < y -> x >= y",
        "boolean: x < y and (not size) -> x < y or not size",
        "boolean: x < y and (not size) -> x < y",
        "boolean: x < y and (not size) -> not size",
        "condition: if x < y and (not size) -> if not (x < y and (not size))",
        "sign: not size -> size",
        "statement left out: raise ValueError(f'{x + 1} is too small') -> pass",
        "call left out: g(x, y, size=size).sort() -> g(x, y, size=size)",
        "arguments swapped: g(x, y, size=size) -> g(y, x, size=size)",
        "keyword left out: g(x, y, size=size) -> g(x, y)",
        "arithmetic: z[1:y] += 0.5 -> z[1:y] -= 0.5",
        "statement left out: z[1:y] += 0.5 -> pass",
        "constant: 1 -> 2",
        "off by one: 1:y -> 1:y + 1",
        "constant: 0.5 -> 0.55",
        "returned value: return -z -> return None",
        "sign: -z -> z",
    }


def test_names_survive_edits_elsewhere_and_lead_to_one_change_each() -> None:
    before = keys_of(SNIPPET)
    after = keys_of("import os\n\n\ndef other(a):\n    return a\n" + SNIPPET)
    assert set(before) < set(after)
    assert len(set(before)) == len(before)
    plain = ast.unparse(ast.parse(SNIPPET))
    trees = [ast.unparse(mutated(mutant, SNIPPET)) for mutant in mutants("m", SNIPPET)]
    assert plain not in trees
    assert len(set(trees)) == len(trees)


def test_a_sample_is_the_same_again_and_another_seed_draws_another() -> None:
    found = mutants("m", SNIPPET)
    again = list(reversed(found))
    assert sample(found, 5, 0) == sample(again, 5, 0)
    assert {m.key for m in sample(found, 5, 0)} != {m.key for m in sample(found, 5, 1)}
    # a mutant that is gone takes the place of none but its own
    gone = sample(found, 5, 0)[0]
    left = sample([m for m in found if m != gone], 5, 0)
    assert {m.key for m in sample(found, 5, 0)} - {gone.key} < {m.key for m in left}


def test_every_planted_fault_still_finds_its_code() -> None:
    faults = planted()
    assert len({fault.name for fault in faults}) == len(faults) >= 39
    for fault in faults:
        source = source_path(fault.module).read_text(encoding="utf-8")
        assert ast.dump(fault.tree()) != ast.dump(ast.parse(source)), fault.name
    lost = PlantedFault("x", "mimbench.scores.metrics", "no such code", "")
    with pytest.raises(ValueError, match="'x': its code stands 0 times"):
        lost.source()


def test_subjects_and_their_test_files_are_there() -> None:
    found = subjects.modules()
    for subject, patterns in subjects.SUBJECTS.items():
        for pattern in patterns:
            assert any(subjects.fnmatchcase(name, pattern) for name in found), (subject, pattern)
    stems = {Path(path).stem for path in subjects.test_files()}
    for pattern in subjects.HOLDING:
        assert any(subjects.fnmatchcase(stem, f"test_{pattern}") for stem in stems), pattern


def test_judged_equivalents_are_mutants_of_today_and_have_a_reason() -> None:
    modules = {key.split(" | ")[0].partition(":")[0] for key in equivalents()}
    known = {
        mutant.key
        for module in modules
        for mutant in mutants(module, source_path(module).read_text(encoding="utf-8"))
    }
    assert [key for key in equivalents() if key not in known] == []
    assert all(len(reason) > 15 for reason in equivalents().values())


def judged(name: str, outcome: str, equivalent: str = "") -> JudgedMutant:
    mutant = Mutant("a.b", "f", "sign", f"-{name} -> {name}", 7)
    return JudgedMutant(mutant, "scores", 20, Verdict(outcome), equivalent)


def test_the_page_counts_and_names() -> None:
    found = [judged("x", "killed"), judged("y", "survived"), judged("z", "survived", "the same")]
    found += [judged("w", "timeout"), judged("v", "not reached")]
    assert rate(found) == 0.5
    assert summary(found).startswith(
        "1 modules: 2 of 4 mutants killed (50.0 %), 1 of them by running out"
    )
    assert survivors(found) == [
        "- `a.b:f` line 7, sign: `-y -> y`",
        "- `a.b:f` line 7, sign: `-v -> v` (no test enters it)",
    ]
    text = "Before.\n<!-- seed 0: begin -->\nold\n<!-- seed 0: end -->\nAfter.\n"
    filled = page(text, {"seed 0": found}, "", commit="c0ffee1")
    assert filled.startswith("Before.\n<!-- seed 0: begin -->\n1 modules: 2 of 4")
    assert "not counted. Measured at `c0ffee1`.\n\nSurvivors:\n\n- `a.b:f` line 7" in filled
    assert filled.endswith("<!-- seed 0: end -->\nAfter.\n")
    row = "| scores | `a.b` | 20 | 5 | 1 | 2 | 2 |"
    assert row not in filled, "the page has no place for the table"
    marks = "<!-- seed 0: modules: begin -->\n<!-- seed 0: modules: end -->\n"
    filled = page(filled + marks, {"seed 0": found}, "", commit="c0ffee1")
    assert row in filled
    assert page(filled, {"seed 0": found}, "", commit="c0ffee1") == filled
    assert "- none\n" in page(text, {"seed 0": found[:1]}, "")
