"""Faults that once slipped through, kept as replacements of code: every one must be noticed."""

import ast
from dataclasses import dataclass

import yaml

from bench.mutation.places import ROOT, source_path

LIST = ROOT / "bench" / "mutation" / "planted.yaml"


@dataclass(frozen=True)
class PlantedFault:
    """One realistic fault."""

    name: str
    module: str
    find: str
    put: str

    def source(self) -> str:
        """Return the module's source with the fault in it."""
        source = source_path(self.module).read_text(encoding="utf-8")
        if source.count(self.find) != 1:
            raise ValueError(
                f"planted fault '{self.name}': its code stands {source.count(self.find)} times in "
                f"{self.module}, wanted once; bring bench/mutation/planted.yaml up to date"
            )
        return source.replace(self.find, self.put)

    def tree(self) -> ast.Module:
        """Return the module's tree with the fault in it."""
        return ast.parse(self.source())

    def place(self) -> str:
        """Return the innermost function or class around the change."""
        source = source_path(self.module).read_text(encoding="utf-8")
        line = source[: source.index(self.find) + len(self.find) - len(self.find.lstrip())].count("\n") + 1  # fmt: skip
        return place_of_line(ast.parse(source), line)


def place_of_line(tree: ast.AST, line: int, place: str = "") -> str:
    """Return the qualified name of what is defined around a line."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.stmt | ast.excepthandler) and child.lineno <= line <= (child.end_lineno or 0):  # fmt: skip
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            inner = f"{place}.{child.name}".lstrip(".") if named else place
            return place_of_line(child, line, inner)
    return place


def planted() -> list[PlantedFault]:
    """Read the list."""
    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return [PlantedFault(name=name, **entry) for name, entry in entries.items()]
