"""Write one HTML file that shows everything about an output folder and needs no network."""

import argparse
import logging
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.commands.table import add_results, parse_choices
from mimbench.system.files import write_text
from mimbench.system.options import Parser, add_option

logger = logging.getLogger(__name__)


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_results(parser)
    add_option(parser, "--out", "default: DIR/report.html", metavar="FILE")
    parser.rename(output="--out")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    add_option(parser, "--reference")
    parser.add_argument(
        "--no-compute", action="store_true", help="nothing that needs checkpoints or data"
    )
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="FOLDER",
        help="also write the plots for a paper: SVG and PDF, a column or a page wide",
    )


def main(args: argparse.Namespace) -> int:
    """Write the report."""
    from mimbench.suite.report.page import make_report

    path = args.out or args.results / "report.html"
    manifest, choice = load_manifest(args.benchmarks), parse_choices(args.reference)
    page = make_report(args.results, manifest, choice=choice, compute=not args.no_compute)
    write_text(path, page)
    logger.info("report: %s (%.1f MB)", path, path.stat().st_size / 1e6)
    if args.figures:
        from mimbench.suite.report.gathered import gather
        from mimbench.suite.report.paper.figures import write_figures

        written = write_figures(gather(args.results, manifest, choice), args.figures)
        logger.info("figures: %d files in %s", len(written), args.figures)
    return 0
