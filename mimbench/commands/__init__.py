"""The verbs of `mimbench`, one module each, and how to find them."""

import argparse
import ast
import importlib
from pathlib import Path
from typing import Protocol, cast

from mimbench.system.options import Parser

PROGRAM = "mimbench"


class Command(Protocol):
    """What a module in this folder offers; the first line of its docstring is its help.

    The module imports no torch: its options are shown and completed without. `main` imports what
    the work needs.
    """

    def add_arguments(self, parser: Parser) -> None:
        """Add the command's options to `parser`."""
        ...

    def main(self, args: argparse.Namespace) -> int:
        """Run the command; return the exit code."""
        ...


def command_summaries() -> dict[str, str]:
    """Return verb -> first line of its help, read from the sources: nothing is imported."""
    summaries = {}
    for folder in map(Path, __path__):
        for path in [*folder.glob("[a-z]*.py"), *folder.glob("[a-z]*/__init__.py")]:
            verb = path.parent.name if path.stem == "__init__" else path.stem
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summaries[verb.replace("_", "-")] = docstring.partition("\n")[0]
    return dict(sorted(summaries.items()))


def load_command(verb: str) -> tuple[Command, Parser]:
    """Return a verb's module and the parser of its options."""
    module = importlib.import_module(f"{__name__}.{verb.replace('-', '_')}")
    command = cast(Command, module)
    parser = Parser(prog=f"{PROGRAM} {verb}", description=module.__doc__)
    command.add_arguments(parser)
    return command, parser
