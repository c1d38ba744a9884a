"""Say what a run will cost before spending it: steps, time, memory, disk, what is done already."""

import argparse
import sys

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands.run import add_request_arguments, options_of, parse_checkpoint
from mimbench.suite.costs.planning import PATIENCE
from mimbench.suite.suite import Options, show_plan
from mimbench.system.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("checkpoints", nargs="+", metavar="[NAME=]CKPT")
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, metavar="S", help="seconds for one measurement"
    )
    add_request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Show the plan on stdout."""
    if args.patience <= 0:
        raise UserError(f"--patience is {args.patience}, expected seconds above 0")
    options: Options = options_of(args)
    checkpoints = [parse_checkpoint(text) for text in args.checkpoints]
    sys.stdout.write(show_plan(load_manifest(args.benchmarks), checkpoints, options, args.patience))
    return 0
