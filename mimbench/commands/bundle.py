"""Pack an output folder (results, configurations, outcomes, environment) into one archive."""

import argparse
import logging
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.sharing.bundle import write_bundle

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("out", type=Path, metavar="DIR", help="what a run wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: DIR.tar.gz")
    parser.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")


def main(args: argparse.Namespace) -> int:
    """Write the bundle."""
    path = args.output or args.out.resolve().parent / f"{args.out.resolve().name}.tar.gz"
    count = write_bundle(args.out, path, args.benchmarks)
    logger.info("%s holds %d files; check it with: python -m mimbench verify %s", path, count, path)
    return 0
