"""The library knows no task: no code in mimbench/ names a task, a group or a benchmark."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mimbench.benchmarks.manifest import load_manifest

LIBRARY = Path(__file__).parents[1] / "mimbench"
MANIFEST = load_manifest()
NAMES = frozenset(
    {
        *MANIFEST.benchmarks,
        *MANIFEST.tasks,
        *(benchmark.group for benchmark in MANIFEST.benchmarks.values()),
    }
)
FOREIGN = {
    # a key of COCO's annotation format, and words of other libraries' interfaces
    "scores/matches.py": {"segmentation"},
    # columns and words of the files that are imported
    "tables/foreign/efficient_probing.py": {"knn"},
    "tables/foreign/visbench_records.py": {"finetune"},
    # folders of PASCAL VOC
    "data/label_maps.py": {"segmentation"},
}
"""Names that mean something else in a file."""


def named(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for each task, group or benchmark that code compares, looks up or prints."""
    tree = ast.parse(source)
    # docstrings, also those of fields, may explain with an example
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in documents:
            continue
        if isinstance(node.value, str):
            yield from ((node.lineno, name) for name in words(node.value) & NAMES)


def words(text: str) -> set[str]:
    """Return a text's words, with dots and dashes inside them."""
    return {word.strip(".-") for word in re.findall(r"[\w.-]+", text.lower())}


def sources() -> list[Path]:
    """Return the library's files; the sample data, the doctor and file layouts are about data."""
    return [
        path
        for path in sorted(LIBRARY.rglob("*.py"))
        if path.relative_to(LIBRARY).parts[0] not in {"sample", "doctor", "checkpoints"}
    ]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_no_code_names_a_task_a_group_or_a_benchmark(path: Path) -> None:
    allowed = FOREIGN.get(path.relative_to(LIBRARY).as_posix(), set())
    found = [(line, n) for line, n in named(path.read_text(encoding="utf-8")) if n not in allowed]
    assert found == [], "let the task declare it (mimbench.task.Traits), or benchmarks.yaml say it"


@pytest.mark.parametrize(
    "source",
    [
        'HEAVY = ("finetune", "ade")',
        'if group == "detection":\n    pass',
        'PREFIX = {"in-knn": 1}',
        'module = load_task("transfer.classification.linear")',
        'help = "groups: knn, linear..."',
    ],
)
def test_the_rule_finds_a_name(source: str) -> None:
    assert list(named(source))


def test_the_rule_leaves_documentation_alone() -> None:
    assert not list(named('"""Like a linear probe, or in-knn."""\nx = 1\n"""Of detection."""\n'))
