"""Show the table of an output folder: terminal, Markdown, CSV, LaTeX or JSON."""

import argparse
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE, load_manifest
from mimbench.system.errors import UserError
from mimbench.tables.formats import FORMATS
from mimbench.tables.table import make_table, read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs"), metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    parser.add_argument("--benchmarks", type=Path, default=DEFAULT_FILE, metavar="FILE")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="NAME=METHOD [EPOCHS]",
        help="the published row that a checkpoint should reproduce, e.g. 'ckpt=HPM 800'",
    )


def main(args: argparse.Namespace) -> int:
    """Write the table to stdout."""
    results = read_results(args.out)
    if not results:
        raise UserError(f"no results in {args.out}; name the folder that a run wrote (--out)")
    table = make_table(
        results, load_manifest(args.benchmarks), choice=parse_choices(args.reference)
    )
    sys.stdout.write(FORMATS[args.format](table))
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
