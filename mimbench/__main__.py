"""The command line: `python -m mimbench VERB ...`; each file in `mimbench/commands` is a verb."""

import argparse
import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from mimbench import __version__, commands
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.logs import configure_logging

PROGRAM = "python -m mimbench"
_FAILED, _MISUSED, _INTERRUPTED = 1, 2, 130


class Command(Protocol):
    """What a module in `mimbench/commands` offers; the first line of its docstring is its help."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
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
        "",
        "How well does a vision backbone transfer?",
        "",
        "verbs:",
    ]
    return "\n".join([*head, *lines, "", f"options of a verb: {PROGRAM} VERB --help"]) + "\n"


def dispatch(arguments: Sequence[str]) -> int:
    """Run the verb that `arguments` begin with; only its module is imported."""
    summaries = command_summaries()
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        (sys.stdout if arguments else sys.stderr).write(help_text(summaries))
        return 0 if arguments else _MISUSED
    if arguments[0] in {"-V", "--version"}:
        sys.stdout.write(f"mimbench {__version__}\n")
        return 0
    verb = arguments[0]
    if verb not in summaries:
        raise UserError(f"unknown verb '{verb}'{did_you_mean(verb, summaries)}")
    module = importlib.import_module(f"mimbench.commands.{verb.replace('-', '_')}")
    command = cast(Command, module)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return command.main(parser.parse_args(arguments[1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; a mistake the user can mend is one message without a traceback."""
    configure_logging()
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return _MISUSED
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be what went away
            sys.stderr.write("interrupted\n")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python's own flush at exit must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED


if __name__ == "__main__":
    sys.exit(main())
