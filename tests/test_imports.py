"""Imports flow one way: applications -> mimbench, never sideways, never back."""

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APPLICATIONS = {"pretrain", "transfer", "knn"}
OURS = {*APPLICATIONS, "mimbench", "tests", "bench"}
HEAVY = {"detectron2", "mmseg", "mmengine", "mmcv", "faiss"}
SOURCES = sorted(
    path
    for folder in ("mimbench", *sorted(APPLICATIONS))
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
    """Yield (dotted name, whether it is imported inside a function) for each import."""
    tree = ast.parse(source)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from transfer import detection` names a module too.
            yield from ((f"{base}.{alias.name}", id(node) in inner) for alias in node.names)


def application_of(dotted: str) -> str:
    """Return which application a module belongs to: `transfer.detection`, `knn`, or ''."""
    parts = dotted.split(".")
    if parts[0] not in APPLICATIONS:
        return ""
    return ".".join(parts[:2]) if parts[0] == "transfer" else parts[0]


def violations(path: Path, source: str) -> list[str]:
    """Return what the file imports against the rule."""
    parts = path.with_suffix("").parts
    here, found = application_of(".".join(parts)), []
    for name, in_function in imported(source, parts[:-1]):
        top, there = name.partition(".")[0], application_of(name)
        back = parts[0] == "mimbench" and bool(there)
        sideways = bool(here) and bool(there) and there != here
        heavy = parts[0] == "mimbench" and top in HEAVY and not in_function
        if back or sideways or heavy or top in {"tests", "bench"}:
            found.append(f"{path} imports {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path: Path) -> None:
    assert violations(path.relative_to(ROOT), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mimbench/a.py", "import knn.classify"),
        ("mimbench/a.py", "from transfer.detection import vitdet"),
        ("mimbench/a.py", "def f():\n    import pretrain"),
        ("mimbench/a.py", "import detectron2"),
        ("mimbench/a.py", "from mmseg.models import build"),
        ("mimbench/a.py", "if True:\n    import faiss"),
        ("knn/a.py", "from pretrain.masks import block"),
        ("transfer/detection/a.py", "from transfer.segmentation import convert"),
        ("transfer/detection/a.py", "from transfer import segmentation"),
        ("transfer/detection/a.py", "from ..segmentation import convert"),
        ("knn/a.py", "import tests.conftest"),
    ],
)
def test_rule_finds_a_wrong_import(path: str, source: str) -> None:
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("mimbench/a.py", "import torch\nfrom mimbench import files"),
        ("mimbench/a.py", "def probe():\n    import faiss"),
        (
            "knn/search.py",
            "import faiss\nfrom mimbench.vit.network import x\nfrom knn.classify import y",
        ),
        (
            "transfer/detection/vitdet.py",
            "import detectron2\nfrom transfer.detection import convert",
        ),
        ("transfer/detection/vitdet.py", "from . import convert\nfrom .convert import x"),
        ("pretrain/masks/block.py", "from pretrain.masks import Mask"),
    ],
)
def test_rule_allows_what_is_right(path: str, source: str) -> None:
    assert violations(Path(path), source) == []


HOUSES = {"mimbench": (17, 9), "pretrain": (12, 9)}
"""The most rooms (files and folders directly under the name) and floors (the longest chain of them)."""


def room_of(dotted: str, house: str) -> str:
    """Return the folder or file directly under `house` that a module belongs to, or ''."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == house and len(parts) > 1 else ""


def rooms(sources: Mapping[Path, str], house: str) -> dict[str, set[str]]:
    """Return what each room of a house imports of the others."""
    found: dict[str, set[str]] = {}
    names = {room_of(".".join(path.with_suffix("").parts), house) for path in sources}
    for path, source in sources.items():
        parts = path.with_suffix("").parts
        here = room_of(".".join(parts), house)
        # a package's own docstring is no room, and `python -m` a folder is a door of the house
        if here in ("", "__init__") or parts[-1] == "__main__":
            continue
        there = {room_of(name, house) for name, _ in imported(source, parts[:-1])} & names
        found.setdefault(here, set()).update(there - {here, "", "__init__"})
    return found


def floors(found: Mapping[str, set[str]]) -> dict[str, int]:
    """Return each room's floor: one above the highest room that it imports."""
    out: dict[str, int] = {}
    for room in TopologicalSorter(found).static_order():
        out[room] = 1 + max((out[below] for below in found.get(room, ())), default=0)
    return out


@pytest.mark.parametrize("house", HOUSES)
def test_a_house_has_few_rooms_on_few_floors_and_no_arrow_runs_up(house: str) -> None:
    inside = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == house]
    found = rooms({p.relative_to(ROOT): p.read_text(encoding="utf-8") for p in inside}, house)
    most_rooms, most_floors = HOUSES[house]
    assert len(found) <= most_rooms, f"{len(found)} rooms: {', '.join(sorted(found))}"
    # a circle is an error here
    levels = floors(found)
    assert max(levels.values()) <= most_floors, sorted(levels.items(), key=lambda item: item[1])
    if house == "mimbench":
        assert found["suite"] >= {"benchmarks", "tables"}


def modules(sources: Mapping[Path, str]) -> dict[str, set[str]]:
    """Return what each module imports of the others, for type checks and inside functions too."""
    names = {".".join(path.with_suffix("").parts): path for path in sources}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        there = imported(sources[path], path.parts[:-1])
        # `from a import b` names a module, or what one defines
        found[name] = {d if d in names else d.rpartition(".")[0] for d, _ in there}
        found[name] = (found[name] & names.keys()) - {name}
    return found


def test_no_two_modules_import_each_other() -> None:
    found = modules({p.relative_to(ROOT): p.read_text(encoding="utf-8") for p in SOURCES})
    assert max(floors(found).values()) > 10


def test_a_circle_of_modules_is_found() -> None:
    planted = {
        Path("knn/vote.py"): "def f():\n    from knn import classify",
        Path("knn/classify.py"): "from knn.vote import f",
    }
    with pytest.raises(CycleError):
        floors(modules(planted))


def test_rule_finds_a_circle() -> None:
    found = rooms(
        {
            Path("mimbench/data/lists.py"): "from mimbench.training import batches",
            Path("mimbench/training/batches.py"): "from mimbench.data.lists import x",
        },
        "mimbench",
    )
    assert found == {"data": {"training"}, "training": {"data"}}
    with pytest.raises(CycleError):
        floors(found)


def test_floors_are_counted_by_the_longest_chain() -> None:
    found = rooms(
        {
            Path("mimbench/__init__.py"): "from mimbench.a import x",
            Path("mimbench/a.py"): "import torch",
            Path("mimbench/b/deep/c.py"): "def f():\n    from mimbench.a import x",
            Path("mimbench/b/__main__.py"): "from mimbench.d import x",
            Path("mimbench/d.py"): "from mimbench import a, b, __version__",
        },
        "mimbench",
    )
    assert found == {"a": set(), "b": {"a"}, "d": {"a", "b"}}
    assert floors(found) == {"a": 1, "b": 2, "d": 3}


def test_no_top_level_name_hides_a_dependency() -> None:
    """A folder or file at the root, or a `sys.path` entry, would win over the real package."""
    names = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))
    }
    foreign = installed() | set(sys.stdlib_module_names)
    assert names & (foreign - OURS) == set()
    assert OURS & (set(sys.stdlib_module_names) | HEAVY) == set()


@cache
def installed() -> frozenset[str]:
    """Top-level names of all installed packages: asked once, not for each file."""
    return frozenset(packages_distributions())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_named_like_the_standard_library_or_a_dependency(path: Path) -> None:
    name = path.parent.name if path.stem == "__init__" else path.stem
    taken = (set(sys.stdlib_module_names) | installed() | {"datasets", "evaluate"}) - OURS
    # Formats and verbs carry the name of what they read or do; they are only reached by full name.
    if path.parent.name not in {"formats", "commands"}:
        assert name == "__main__" or name not in taken


def test_tests_are_flat() -> None:
    """A `tests/knn/__init__.py` would make `import knn` return the test folder."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert all(path.parent == ROOT / "tests" for path in (ROOT / "tests").rglob("test_*.py"))
