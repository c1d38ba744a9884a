"""Write one HTML file that shows everything about an output folder and needs no network."""

import argparse
import logging
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.commands.table import parse_choices
from mimbench.report.page import make_report
from mimbench.system.files import write_text

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"), metavar="DIR")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: DIR/report.html"
    )
    parser.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument("--reference", action="append", default=[], metavar="NAME=METHOD [EPOCHS]")
    parser.add_argument(
        "--no-compute", action="store_true", help="nothing that needs checkpoints or data"
    )


def main(args: argparse.Namespace) -> int:
    """Write the report."""
    path = args.output or args.out / "report.html"
    choice = parse_choices(args.reference)
    page = make_report(
        args.out, load_manifest(args.benchmarks), choice=choice, compute=not args.no_compute
    )
    write_text(path, page)
    logger.info("report: %s (%.1f MB)", path, path.stat().st_size / 1e6)
    return 0
