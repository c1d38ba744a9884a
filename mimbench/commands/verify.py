"""Recompute a bundle's metrics and table from its outcomes; fail on any changed field."""

import argparse
import sys
from pathlib import Path

from mimbench.sharing.bundle import verify_bundle
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("bundle", type=Path, metavar="FILE", help="what `bundle` wrote")


def main(args: argparse.Namespace) -> int:
    """Verify the bundle; return FAILED if anything in it is not what it says."""
    faults, unknown = verify_bundle(args.bundle)
    for run in unknown:
        sys.stderr.write(f"{run}: no outcomes were kept, only its digest was checked\n")
    for fault in faults:
        sys.stderr.write(f"{args.bundle}: {fault}\n")
    sys.stdout.write(f"{args.bundle}: {'NOT VERIFIED' if faults else 'verified'}\n")
    return ExitCode.FAILED if faults else ExitCode.OK
