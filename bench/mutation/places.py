"""The mutants of a module, each under a name that survives edits elsewhere in the file."""

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.mutation.operators import changes

ROOT = Path(__file__).parents[2]
SHOWN = 90
"""Characters of code in a name."""
UNSEEN_CALLS = re.compile(r"^(logger|logging|warnings)\.|^(UserError|cast|TypeVar|NewType|field)$")
UNSEEN_FUNCTIONS = frozenset({"__repr__", "__str__", "describe"})


@dataclass(frozen=True)
class Mutant:
    """One small fault at one place."""

    module: str
    place: str
    """Qualified name of the function or class around it, `` at the top of the module."""
    operator: str
    change: str
    """The code before and after."""
    line: int

    @property
    def key(self) -> str:
        """Its name: module, place and change; no line number, which every edit moves."""
        where = f"{self.module}:{self.place}" if self.place else self.module
        return f"{where} | {self.operator} | {self.change}"


@dataclass
class Site:
    """Where a changed node goes: a field of its parent, and which item if it is a list."""

    parent: ast.AST
    field: str
    item: int | None
    node: ast.AST
    place: str

    def put(self, node: ast.AST) -> None:
        """Set the changed node."""
        if self.item is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.item] = node


def source_path(module: str) -> Path:
    """Return the file of a module by its dotted name."""
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"


def is_docstring(node: ast.AST) -> bool:
    """Whether the statement is a text by itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def unseen(parent: ast.AST, field: str, node: ast.AST) -> bool:
    """Whether only a reader or a type checker sees the node."""
    if field in {"annotation", "returns", "decorator_list", "bases", "type_params", "exc", "msg"}:
        return True
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.If) and re.search("TYPE_CHECKING|__name__", ast.unparse(node.test)):
        return True
    if isinstance(node, ast.FunctionDef) and node.name in UNSEEN_FUNCTIONS:
        return True
    if isinstance(node, ast.keyword) and node.arg in {"strict", "frozen", "kw_only"}:
        return True
    called = node.value if isinstance(node, ast.Expr) else node
    if isinstance(called, ast.Call) and UNSEEN_CALLS.search(ast.unparse(called.func)):
        return True
    return is_docstring(node) or (isinstance(parent, ast.Subscript) and ast.unparse(parent.value) in {"Literal", "Callable"})  # fmt: skip


def sites(node: ast.AST, place: str = "") -> Iterator[Site]:
    """Yield every place of a tree whose node may change, outermost first."""
    for field, value in ast.iter_fields(node):
        items = value if isinstance(value, list) else [value]
        for i, child in enumerate(items):
            if not isinstance(child, ast.AST) or unseen(node, field, child):
                continue
            inner = place
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{place}.{child.name}".lstrip(".")
            yield Site(node, field, i if isinstance(value, list) else None, child, place)
            yield from sites(child, inner)


def one_line(node: ast.AST) -> str:
    """The head of a node's code, short enough for a name."""
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"  # fmt: skip


def written(before: ast.AST, after: ast.AST) -> str:
    """`before -> after`; of an `if`, its condition alone."""
    if isinstance(before, ast.If | ast.While) and isinstance(after, ast.If | ast.While):
        head = "if" if isinstance(before, ast.If) else "while"
        return f"{head} {one_line(before.test)} -> {head} {one_line(after.test)}"
    return f"{one_line(before)} -> {one_line(after)}"


def walk(tree: ast.Module, module: str) -> Iterator[tuple[Mutant, Site, ast.AST]]:
    """Yield each mutant with the way to make it in this very tree."""
    seen: Counter[tuple[str, str, str]] = Counter()
    for site in list(sites(tree)):
        for operator, node in changes(site.node):
            change = written(site.node, node)
            seen[site.place, operator, change] += 1
            count = seen[site.place, operator, change]
            if count > 1:
                change += f" (no. {count})"
            line = getattr(site.node, "lineno", 0)
            yield Mutant(module, site.place, operator, change, line), site, node


def mutants(module: str, source: str) -> list[Mutant]:
    """List all mutants of a module's source."""
    return [mutant for mutant, _, _ in walk(ast.parse(source), module)]


def mutated(mutant: Mutant, source: str) -> ast.Module:
    """Return the tree of the module with this one fault."""
    tree = ast.parse(source)
    for found, site, node in walk(tree, mutant.module):
        if found.key == mutant.key:
            site.put(node)
            return ast.fix_missing_locations(tree)
    raise KeyError(mutant.key)


def sample(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Draw by hash of the name: the same mutants again whatever changed elsewhere."""
    return sorted(
        sorted(found, key=lambda m: hashlib.sha256(f"{seed} {m.key}".encode()).digest())[:count],
        key=lambda m: m.line,
    )
