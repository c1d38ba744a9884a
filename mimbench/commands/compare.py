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
from mimbench.tables.foreign.shown import choose_imported, describe_imported, read_all
from mimbench.tables.table import read_results_with_folders


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("a", metavar="A", help="row name, or the beginning of its digest")
    parser.add_argument(
        "b",
        metavar="B",
        help="another row, a published one (HPM, 'HPM 800', 'HPM B/16 800'), or an imported model",
    )
    add_results(parser)
    parser.remove("--out", "name the folder last, as in: mimbench compare A B DIR")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    add_option(parser, "--imported")


def main(args: argparse.Namespace) -> int:
    """Write the comparison to stdout."""
    manifest = load_manifest(args.benchmarks)
    results = read_results_with_folders(args.results)
    a = choose(results, args.a)
    published = find_published(manifest.references, args.b)
    imported = read_all(args.imported)
    if imported and not published and not find_row(results, args.b):
        found = choose_imported(imported, args.b)
        lines = describe_imported([result for _, result in a], found, manifest)
    elif find_row(results, args.b) or not published:
        lines = describe_pair(a, choose(results, args.b), manifest)
    else:
        lines = describe_published(a, published, manifest)
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
