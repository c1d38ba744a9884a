"""From a verb to its command: each file in `mimbench/commands` is a verb."""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from mimbench import __version__, commands
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser
from mimbench.system.source import source_state

PROGRAM = "mimbench"


class Command(Protocol):
    """What a module in `mimbench/commands` offers; the first line of its docstring is its help.

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
    for folder in map(Path, commands.__path__):
        for path in [*folder.glob("[a-z]*.py"), *folder.glob("[a-z]*/__init__.py")]:
            verb = path.parent.name if path.stem == "__init__" else path.stem
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            summaries[verb.replace("_", "-")] = docstring.partition("\n")[0]
    return dict(sorted(summaries.items()))


def help_text(summaries: dict[str, str]) -> str:
    """Return the list of verbs."""
    width = max(map(len, summaries), default=0)
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in summaries.items()]
    head = [
        f"usage: {PROGRAM} VERB ...",
        f"       {PROGRAM} --version",
        "",
        "How well does a vision backbone transfer?",
        "",
        "verbs:",
    ]
    return "\n".join([*head, *lines, "", f"options of a verb: {PROGRAM} VERB --help"]) + "\n"


def load_command(verb: str) -> tuple[Command, Parser]:
    """Return a verb's module and the parser of its options."""
    module = importlib.import_module(f"mimbench.commands.{verb.replace('-', '_')}")
    command = cast(Command, module)
    parser = Parser(prog=f"{PROGRAM} {verb}", description=module.__doc__)
    command.add_arguments(parser)
    return command, parser


def dispatch(arguments: Sequence[str]) -> int:
    """Run the verb that `arguments` begin with; only its module is imported."""
    summaries = command_summaries()
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        (sys.stdout if arguments else sys.stderr).write(help_text(summaries))
        return ExitCode.OK if arguments else ExitCode.USAGE
    if arguments[0] in {"-V", "--version"}:
        sys.stdout.write(version_text())
        return ExitCode.OK
    verb = arguments[0]
    if verb not in summaries:
        raise UserError(f"unknown verb '{verb}'{did_you_mean(verb, summaries)}")
    command, parser = load_command(verb)
    return command.main(parser.parse_args(arguments[1:]))


def version_text() -> str:
    """Return the version, with the commit where git knows it."""
    commit, dirty = source_state()
    state = f" ({commit[:12]}{', changed' if dirty else ''})" if commit else ""
    return f"{PROGRAM} {__version__}{state}\n"
