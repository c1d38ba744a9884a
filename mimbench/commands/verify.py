"""Recompute a bundle's metrics and table from its outcomes; fail on any changed field."""

import argparse
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.suite.sharing.verifying import verify_bundle
from mimbench.system.errors import printable
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("bundle", type=Path, metavar="FILE", help="what `bundle` wrote")
    parser.add_argument("--digest", default="", metavar="HEX", help="the digest that was published")
    add_option(parser, "--signer")
    add_option(parser, "--strict")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)


def main(args: argparse.Namespace) -> int:
    """Verify the bundle; return FAILED if anything in it is not what it says."""
    verdict = verify_bundle(
        args.bundle, benchmarks=args.benchmarks, digest=args.digest, signers=args.signer
    )
    for what in verdict.unproven:
        sys.stderr.write(f"not proven: {printable(what)}\n")
    for fault in verdict.faults:
        sys.stderr.write(f"fault: {printable(fault)}\n")
    failed = bool(verdict.faults or (args.strict and verdict.unproven))
    signed = f", signed by {printable(verdict.signer)}" if verdict.signer else ""
    sys.stdout.write(
        f"{printable(str(args.bundle))}: {'NOT VERIFIED' if failed else 'verified'}{signed}\n"
        f"digest {verdict.digest}\n"
    )
    return ExitCode.FAILED if failed else ExitCode.OK
