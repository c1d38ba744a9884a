"""List the tables of the papers: what each takes, and how much of it is published."""

import argparse
import sys

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.system.options import Parser, add_option
from mimbench.tables.paper_view import as_text, view_of
from mimbench.tables.papers import load_papers
from mimbench.tables.reproducing import list_of_tables, page


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "table", nargs="?", metavar="TABLE", help="show one, such as hpm.main, as it was published"
    )
    parser.add_argument(
        "--page", action="store_true", help="write docs/howto/reproducing.md to stdout"
    )
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)


def main(args: argparse.Namespace) -> int:
    """List the tables, show one, or write the page about all."""
    manifest = load_manifest(args.benchmarks)
    papers = load_papers(manifest)
    if args.page:
        text = page(papers, manifest)
    elif args.table:
        text = as_text(view_of(args.table, papers.find(args.table), [], manifest))
    else:
        text = list_of_tables(papers, manifest)
    sys.stdout.write(text)
    return 0
