"""Pack an output folder (results, configurations, outcomes, environment) into one archive."""

import argparse
import logging
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.sharing.bundle import write_bundle
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("results", type=Path, metavar="DIR", help="folder that a run wrote")
    add_option(parser, "--out", "default: DIR.tar.gz", metavar="FILE")
    parser.rename(output="--out")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)


def main(args: argparse.Namespace) -> int:
    """Write the bundle."""
    folder = args.results.resolve()
    path = args.out or folder.parent / f"{folder.name}.tar.gz"
    count = write_bundle(args.results, path, args.benchmarks)
    logger.info("%s holds %d files; check it with: python -m mimbench verify %s", path, count, path)
    return 0
