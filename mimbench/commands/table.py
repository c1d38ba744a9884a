"""Show the table of an output folder: terminal, Markdown, CSV, LaTeX or JSON."""

import argparse
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.system.errors import UserError
from mimbench.system.options import Parser, add_option
from mimbench.tables.foreign.shown import read_all, with_imported
from mimbench.tables.formats import FORMATS, on_screen
from mimbench.tables.paper_view import PAPER_FORMATS, view_of
from mimbench.tables.papers import load_papers
from mimbench.tables.table import make_table, read_results


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    add_results(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="terminal", help="how to write the table"
    )
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    add_option(parser, "--reference")
    add_option(parser, "--table")
    add_option(parser, "--imported")


def add_results(parser: Parser) -> None:
    """Add the folder of results, which `table`, `report` and `compare` read."""
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        default=Path("runs"),
        metavar="DIR",
        help="folder that a run wrote; default: runs",
    )


def main(args: argparse.Namespace) -> int:
    """Write the table to stdout."""
    results = read_results(args.results)
    if not results:
        raise UserError(f"no results in {args.results}; name the folder that a run wrote (--out)")
    manifest, choice = load_manifest(args.benchmarks), parse_choices(args.reference)
    if args.table:
        if args.imported:
            raise UserError("--imported has no place in a paper's own table (--table)")
        if args.format not in PAPER_FORMATS:
            raise UserError(
                f"--table is written as {' or '.join(PAPER_FORMATS)}, not {args.format}"
            )
        view = view_of(
            args.table, load_papers(manifest).find(args.table), results, manifest, choice
        )
        sys.stdout.write(PAPER_FORMATS[args.format](view))
        return 0
    table = make_table(results, manifest, choice=choice)
    table = with_imported(table, read_all(args.imported), manifest)
    sys.stdout.write(on_screen(table) if args.format == "terminal" else FORMATS[args.format](table))
    return 0


def parse_choices(items: list[str]) -> dict[str, str]:
    """Return row name -> published row from `NAME=METHOD [EPOCHS]`."""
    choices = {}
    for item in items:
        name, equals, row = item.partition("=")
        if not (name and equals and row.strip()):
            raise UserError(f"--reference '{item}' is not of the form NAME=METHOD [EPOCHS]")
        choices[name] = row.strip()
    return choices
