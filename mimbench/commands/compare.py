"""Compare two checkpoints, or one with published rows: statistics, or why the numbers differ."""

import argparse
import sys

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.commands.table import add_results
from mimbench.system.options import Parser, add_option
from mimbench.tables.comparison import (
    choose,
    describe_pair,
    describe_published,
    find_published,
    find_row,
)
from mimbench.tables.table import read_results_with_folders


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("a", metavar="A", help="row name, or the beginning of its digest")
    parser.add_argument(
        "b", metavar="B", help="another row, or a published one: HPM, 'HPM 800', 'HPM B/16 800'"
    )
    add_results(parser)
    parser.remove("--out", "name the folder last, as in: mimbench compare A B DIR")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)


def main(args: argparse.Namespace) -> int:
    """Write the comparison to stdout."""
    manifest = load_manifest(args.benchmarks)
    results = read_results_with_folders(args.results)
    a = choose(results, args.a)
    published = find_published(manifest.references, args.b)
    if find_row(results, args.b) or not published:
        lines = describe_pair(a, choose(results, args.b), manifest)
    else:
        lines = describe_published(a, published, manifest)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
