"""Pack an output folder (results, configurations, outcomes, environment) into one archive."""

import argparse
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.suite.sharing.bundle import write_bundle
from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("results", type=Path, metavar="DIR", help="folder that a run wrote")
    add_option(parser, "--out", "default: DIR.tar.gz", metavar="FILE")
    parser.rename(output="--out")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="SSH key to sign with, such as ~/.ssh/id_ed25519"
    )


def main(args: argparse.Namespace) -> int:
    """Write the bundle, and print the digest to publish."""
    folder = args.results.resolve()
    path = args.out or folder.parent / f"{folder.name}.tar.gz"
    packed = write_bundle(args.results, path, args.benchmarks, key=args.sign)
    sys.stdout.write(
        f"{path}: {packed.files} files{', signed' if args.sign else ''}\n"
        f"digest {packed.digest}\n"
        f"publish the digest beside it; to check: mimbench verify {path.name} --digest "
        f"{packed.digest}\n"
    )
    return ExitCode.OK
