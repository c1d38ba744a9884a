"""Predict expensive cells from cheap dense ones, with a 90 % interval, or say that nobody can tell."""

import argparse
import sys

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.commands.table import add_results
from mimbench.system.errors import UserError
from mimbench.system.options import Parser, add_option


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_results(parser)
    add_option(parser, "--imported", "their models are predicted by the public ladders")
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        metavar="NAME=FAMILY",
        help="the kind of pretraining that a row is of; may be repeated",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="show how the public ladders do when every row is left out once",
    )
    add_option(parser, "--json")
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)


def main(args: argparse.Namespace) -> int:
    """Write the predictions to stdout; they never become cells of a table."""
    from mimbench.benchmarks.manifest import load_manifest
    from mimbench.tables.foreign.shown import read_all
    from mimbench.tables.ladder.answers import as_json, as_text, from_public, from_results
    from mimbench.tables.table import read_results

    families = parse_families(args.family)
    found = []
    if args.public or args.imported:
        found += from_public(read_all(args.imported), families)
    else:
        results = read_results(args.results)
        if not results:
            raise UserError(
                f"no results in {args.results}; name the folder that a run wrote, or --public"
            )
        found += from_results(results, load_manifest(args.benchmarks), families)
    write = as_json if args.json else as_text
    sys.stdout.write(write(found, every=args.public))
    return 0


def parse_families(items: list[str]) -> dict[str, str]:
    """Return row -> family from `NAME=FAMILY`."""
    families = {}
    for item in items:
        name, equals, family = item.partition("=")
        if not (name and equals and family.strip()):
            raise UserError(f"--family '{item}' is not of the form NAME=FAMILY")
        families[name] = family.strip()
    return families
