"""Modules imported with another source than their file's, in this process only."""

import ast
import importlib.util
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

from bench.mutation.places import is_docstring, source_path

MARK = "__mark_reached__"


class OtherSource(SourceFileLoader):
    """Loads a module from a tree instead of from its file."""

    def __init__(
        self, name: str, path: str, tree: ast.Module, mark: Callable[[int], None] | None
    ) -> None:
        super().__init__(name, path)
        self.tree, self.mark = tree, mark

    def get_code(self, fullname: str) -> CodeType:
        """Compile the tree; nothing is cached on the disk."""
        del fullname
        return compile(self.tree, self.path, "exec")

    def exec_module(self, module: ModuleType) -> None:
        """Run it, where marks are wanted with the function that sets them."""
        if self.mark is not None:
            module.__dict__[MARK] = self.mark
        super().exec_module(module)


class Replacing(MetaPathFinder):
    """Finds the given modules before Python does."""

    def __init__(
        self,
        trees: Mapping[str, ast.Module],
        mark: Callable[[int], None] | None = None,
    ) -> None:
        self.trees, self.mark = trees, mark

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a replaced module, None for all others."""
        del path, target
        if fullname not in self.trees:
            return None
        file = source_path(fullname)
        loader = OtherSource(fullname, str(file), self.trees[fullname], self.mark)
        inside = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, file, loader=loader, submodule_search_locations=inside
        )

    def install(self) -> None:
        """Take part in every import from here on."""
        for name in self.trees:
            if name in sys.modules:
                raise RuntimeError(f"{name} is loaded already: import it in the child alone")
        sys.meta_path.insert(0, self)


class Marks:
    """One byte for each function, in memory that forked loader workers share."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        """(module, qualified name) by number."""
        self.bytes: mmap.mmap | None = None

    def instrument(self, module: str, source: str) -> ast.Module:
        """Let every function of the module say that it was entered."""
        tree = ast.parse(source)
        self._enter(tree, module, "")
        return ast.fix_missing_locations(tree)

    def _enter(self, node: ast.AST, module: str, place: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = place
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{place}.{child.name}".lstrip(".")
            self._enter(child, module, inner)
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                call = ast.parse(f"{MARK}({len(self.names)})").body
                first = 1 if is_docstring(child.body[0]) else 0
                child.body[first:first] = call
                self.names.append((module, inner))

    def open(self) -> None:
        """Make room, before anything forks."""
        self.bytes = mmap.mmap(-1, max(len(self.names), 1))

    def set(self, number: int) -> None:
        """Note that a function was entered."""
        assert self.bytes is not None
        self.bytes[number] = 1

    def take(self) -> list[tuple[str, str]]:
        """Return what was entered since the last time, and start over."""
        assert self.bytes is not None
        held = self.bytes[: len(self.names)]
        self.bytes[: len(held)] = bytes(len(held))
        return [name for name, byte in zip(self.names, held, strict=True) if byte]
