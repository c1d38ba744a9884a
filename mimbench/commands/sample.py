"""Make the sample data, or check that it is intact."""

import argparse
import logging
from pathlib import Path

from mimbench.sample import check, default_root, generate, sample_root
from mimbench.sample.store import remedy

logger = logging.getLogger(__name__)

_SHOWN_FAULTS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder (default: the cache)")
    parser.add_argument("--check", action="store_true", help="compare every file with its SHA-256")
    parser.add_argument(
        "--fresh", action="store_true", help="make it anew in place of damaged or old sample data"
    )


def main(args: argparse.Namespace) -> int:
    """Make or check the sample data; return 1 if the check finds damage."""
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
    if not faults:
        logger.info("the sample data in %s is intact", root)
        return 0
    for fault in faults[:_SHOWN_FAULTS]:
        logger.error("%s", fault)
    logger.error("%d faults in %s; make it anew: %s", len(faults), root, remedy(root))
    return 1
