"""Say what a run will cost before spending it: steps, time, memory, disk, what is done already."""

import argparse
import sys

from mimbench.benchmarks.manifest import load_manifest
from mimbench.commands.run import (
    add_checkpoints,
    add_request_arguments,
    parse_checkpoint,
    request_of,
)
from mimbench.system.errors import UserError
from mimbench.system.options import Parser


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_checkpoints(parser, "+")
    parser.add_argument(
        "--patience", type=float, default=40.0, metavar="S", help="seconds for one measurement (40)"
    )
    add_request_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Show the plan on stdout."""
    from mimbench.suite.suite import show_plan

    if args.patience <= 0:
        raise UserError(f"--patience is {args.patience}, expected seconds above 0")
    manifest = load_manifest(args.benchmarks)
    request = request_of(args, manifest)
    checkpoints = [parse_checkpoint(text) for text in args.checkpoints]
    sys.stdout.write(show_plan(manifest, checkpoints, request, args.patience))
    return 0
