"""The command line: `mimbench VERB ...`, or `python -m mimbench VERB ...`."""

import sys
from collections.abc import Sequence

from mimbench import __version__
from mimbench.commands import PROGRAM, command_summaries, load_command
from mimbench.system.errors import UserError, did_you_mean
from mimbench.system.exit_codes import ExitCode, run_command
from mimbench.system.logs import configure_logging
from mimbench.system.source import source_state


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; return its exit code."""
    configure_logging()
    return run_command(dispatch, sys.argv[1:] if arguments is None else arguments)


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


def version_text() -> str:
    """Return the version, with the commit where git knows it."""
    commit, dirty = source_state()
    state = f" ({commit[:12]}{', changed' if dirty else ''})" if commit else ""
    return f"{PROGRAM} {__version__}{state}\n"


if __name__ == "__main__":
    sys.exit(main())
