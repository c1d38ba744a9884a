"""Print a completion script for bash or zsh."""

import argparse
import sys

from mimbench.commands import PROGRAM, command_summaries, load_command
from mimbench.system.completion import SHELLS, script
from mimbench.system.options import Parser

USAGE = """
  bash:  source <(mimbench completion bash)    # in ~/.bashrc to keep it
  zsh:   source <(mimbench completion zsh)     # in ~/.zshrc, after compinit
"""


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.epilog = USAGE
    parser.add_argument("shell", choices=SHELLS, help="for which shell")


def main(args: argparse.Namespace) -> int:
    """Write the script to stdout."""
    summaries = command_summaries()
    parsers = {verb: load_command(verb)[1] for verb in summaries}
    sys.stdout.write(script(args.shell, PROGRAM, summaries, parsers))
    return 0
