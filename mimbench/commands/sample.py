"""Make the sample data, or check that it is intact."""

import argparse
import logging
from pathlib import Path

from mimbench.system.exit_codes import ExitCode
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)

_SHOWN_FAULTS = 10


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_option(parser, "--out", "default: the cache", metavar="DIR")
    parser.add_argument("--check", action="store_true", help="compare every file with its SHA-256")
    add_option(parser, "--fresh", "replaces damaged or old sample data")


def main(args: argparse.Namespace) -> int:
    """Make or check the sample data; return FAILED if the check finds damage."""
    from mimbench.sample import check, default_root, generate, sample_root

    root = args.out or default_root()
    if args.fresh:
        generate(root, replace=True)
    elif not args.check:
        sample_root(root)
    if not args.check:
        logger.info("the sample data is in %s", root)
        return 0
    return _report(root, check(root))


def _report(root: Path, faults: list[str]) -> int:
    """Log the verdict of the check; return the exit code."""
    from mimbench.sample.store import remedy

    if not faults:
        logger.info("the sample data in %s is intact", root)
        return 0
    for fault in faults[:_SHOWN_FAULTS]:
        logger.error("%s", fault)
    logger.error("%d faults in %s; make it anew: %s", len(faults), root, remedy(root))
    return ExitCode.FAILED
