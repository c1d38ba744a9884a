"""One concept, one place: a second writer, mix, measure or table of these is found and named."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_imports import ROOT, SOURCES

Finder = Callable[[ast.AST], bool]


def called(node: ast.AST, *names: str) -> bool:
    """Whether the node calls a function of one of these dotted names, however it was imported."""
    if not isinstance(node, ast.Call):
        return False
    dotted = ast.unparse(node.func)
    return any(dotted == name or dotted.endswith(f".{name}") for name in names)


def text(node: ast.AST, pattern: str) -> bool:
    """Whether the node is a string, no docstring, that holds the pattern."""
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "\n" not in node.value
        and re.search(pattern, node.value) is not None
    )


def writes_a_line(node: ast.AST) -> bool:
    """`json.dumps(entry) + "\\n"`: with an indent it is a whole document."""
    return (
        isinstance(node, ast.BinOp)
        and called(node.left, "json.dumps")
        and "indent=" not in ast.unparse(node.left)
        and ast.unparse(node.right) == repr("\n")
    )


def mixes(node: ast.AST) -> bool:
    several = called(node, "default_rng") and any(
        isinstance(a, ast.List | ast.Tuple) for a in getattr(node, "args", [])
    )
    return several or called(node, "SeedSequence", "hashlib.blake2b")


def normalises(node: ast.AST) -> bool:
    """`(images - mean) / std`, under any prefix."""
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Div)
        and ast.unparse(node.right).rpartition(".")[2] == "std"
        and isinstance(node.left, ast.BinOp)
        and ast.unparse(node.left.right).rpartition(".")[2] == "mean"
        # features are standardised too, by their own statistics
        and re.search("image|pixel|picture|raw|batch|255", ast.unparse(node.left.left)) is not None
    )


def counts_the_rest(node: ast.AST) -> bool:
    """`f" and {len(names) - 5} more"`."""
    return isinstance(node, ast.JoinedStr) and re.search(r"and \{.*\} more", ast.unparse(node)) is not None  # fmt: skip


def names_sizes(node: ast.AST) -> bool:
    """A table from published widths."""
    if not isinstance(node, ast.Dict | ast.DictComp):
        return False
    widths = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return {384, 768, 1024} <= widths


def searches(node: ast.AST) -> bool:
    """`(queries @ bank.T).topk(k)`, or the same by way of a variable: `scores.topk` of a product."""
    return (
        called(node, "topk")
        and isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and "@" in ast.unparse(node.func.value)
    )


def multiplies_a_bank(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.MatMult)
        and re.search(r"(bank|shots)(\[.*\])?\.T$", ast.unparse(node.right)) is not None
    )


RULES: dict[str, tuple[Finder, set[str]]] = {
    "the training curve's file": (
        lambda n: text(n, r"^metrics\.jsonl$"),
        {"mimbench/training/curve.py"},
    ),
    "lines of JSON": (writes_a_line, {"mimbench/system/files.py"}),
    "a seed mixed from parts": (mixes, {"mimbench/system/seeds.py"}),
    "the identity of a run's folder": (
        lambda n: text(n, r"^run\.json$"),
        {"mimbench/training/identity.py"},
    ),
    "peak memory": (
        lambda n: called(n, "max_memory_allocated", "getrusage"),
        {"mimbench/system/memory.py"},
    ),
    "out of memory recognised": (
        lambda n: (
            text(n, r"(?i)^out of memory$|DefaultCPUAllocator|ALLOC_FAILED")
            or (isinstance(n, ast.Attribute) and n.attr == "OutOfMemoryError")
        ),
        {"mimbench/system/memory.py"},
    ),
    "image normalisation": (normalises, {"mimbench/vit/normalise.py"}),
    "statistics on the scale of bytes": (
        lambda n: (
            isinstance(n, ast.BinOp)
            and isinstance(n.op, ast.Mult)
            and ast.unparse(n.left) == "255"
            and isinstance(n.right, ast.Name)
            and n.right.id in {"m", "s", "value", "mean", "std"}
        ),
        {"mimbench/vit/normalise.py"},
    ),
    "the first few and how many more": (
        counts_the_rest,
        {"mimbench/system/listing.py"},
    ),
    "published sizes": (
        names_sizes,
        {"mimbench/vit/sizes.py"},
    ),
    "the map into detectron2's names": (
        lambda n: text(n, "pretrain_use_cls_token"),
        {"mimbench/checkpoints/vitdet.py"},
    ),
    "k-NN in torch": (
        lambda n: searches(n) or multiplies_a_bank(n),
        # FAISS's ties, in NumPy; distances to a few neighbours, no vote
        {
            "mimbench/scores/neighbours.py",
            "mimbench/features/search.py",
            "mimbench/scores/spectra.py",
        },
    ),
}


def places(rule: str, sources: dict[str, str]) -> Iterator[str]:
    """Yield where a rule finds its concept outside its home."""
    finder, homes = RULES[rule]
    for path, source in sources.items():
        if path in homes:
            continue
        for node in ast.walk(ast.parse(source)):
            if finder(node):
                yield f"{path}:{getattr(node, 'lineno', 0)}"


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in SOURCES}


@pytest.mark.parametrize("rule", RULES)
def test_there_is_one_of_each(rule: str, sources: dict[str, str]) -> None:
    assert list(places(rule, sources)) == [], f"{rule} belongs into {RULES[rule][1]}"
    finder, homes = RULES[rule]
    for home in homes:
        assert any(map(finder, ast.walk(ast.parse(sources[home])))), f"{home} holds no {rule}"


PLANTED = {
    "the training curve's file": 'path = out / "metrics.jsonl"',
    "lines of JSON": 'file.write(json.dumps({"step": 1}) + "\\n")',
    "a seed mixed from parts": "rng = np.random.default_rng([seed, epoch])",
    "the identity of a run's folder": 'RECORD = "run.json"',
    "peak memory": "peak = torch.cuda.max_memory_allocated(device) / 2**20",
    "out of memory recognised": 'known = "out of memory" in str(error).lower()',
    "image normalisation": "x = (batch.float() / 255 - self.mean) / self.std",
    "statistics on the scale of bytes": "mean = [round(255 * m, 6) for m in spec.mean]",
    "the first few and how many more": 'shown = f"{names[0]} and {len(names) - 1} more"',
    "published sizes": 'WIDTHS = {384: "S", 768: "B", 1024: "L"}',
    "the map into detectron2's names": 'arguments = {"pretrain_use_cls_token": row}',
    "k-NN in torch": "found = (queries @ bank.T).topk(k, dim=1)",
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_finds_a_second_one(rule: str) -> None:
    assert set(places(rule, {"mimbench/other.py": PLANTED[rule]})) == {"mimbench/other.py:1"}


ROLES = {
    "command.py", "again.py", "console.py", "convert.py", "data.py", "hooks.py", "inference.py",
    "loop.py", "order.py", "prepare.py", "protocol.py", "recipe.py", "score.py", "show.py", "train.py",
    "__main__.py",
}  # fmt: skip
"""What detection and segmentation both do, under one file name."""
OTHER_NAMES = {"settings.py", "feed.py", "watch.py", "job.py", "scoring.py", "identity.py", "evaluate.py"}  # fmt: skip


def roles(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.py")}


@pytest.mark.parametrize("application", ["detection", "segmentation"])
def test_detection_and_segmentation_call_the_same_role_the_same(application: str) -> None:
    found = roles(ROOT / "transfer" / application)
    assert found >= ROLES, ROLES - found
    assert not found & OTHER_NAMES


CONTRACT = {"Config", "Strategy"}
"""Names that a contract gives to a class of every task, and of every mask strategy."""


def classes(sources: dict[str, str]) -> dict[str, list[str]]:
    """Return class name -> where it is defined."""
    found: dict[str, list[str]] = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    return found


def shared_names(sources: dict[str, str]) -> dict[str, list[str]]:
    """Return the class names that stand for more than one class."""
    found = classes(sources)
    return {n: where for n, where in found.items() if len(where) > 1 and n not in CONTRACT}


def test_no_two_classes_share_a_name(sources: dict[str, str]) -> None:
    measurements = (ROOT / "bench").rglob("*.py")
    everything = sources | {str(p.relative_to(ROOT)): p.read_text("utf-8") for p in measurements}
    assert len(classes(everything)) > 300
    assert shared_names(everything) == {}


def test_a_shared_name_is_found() -> None:
    planted = {
        "knn/vote.py": "class Table:\n    pass\nclass Config:\n    pass",
        "bench/peak.py": "def f():\n    class Table:\n        pass\nclass Config:\n    pass",
    }
    assert shared_names(planted) == {"Table": ["knn/vote.py:1", "bench/peak.py:2"]}
