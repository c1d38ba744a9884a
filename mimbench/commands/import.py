"""Read a public file of others' results into rows that `table`, `compare` and `board` show."""  # noqa: N999 - a verb is called as its file

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mimbench.system.errors import UserError, printable
from mimbench.system.exit_codes import ExitCode
from mimbench.system.listing import first_few
from mimbench.system.options import Parser, add_option
from mimbench.tables.foreign.kinds import KINDS, parse_file
from mimbench.tables.foreign.rows import SUFFIX, protocols, write_rows


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="as its authors publish it")
    parser.add_argument(
        "--as",
        required=True,
        choices=KINDS,
        help="; ".join(f"{name}: {kind.title}" for name, kind in KINDS.items()),
    )
    parser.add_argument(
        "--source", required=True, metavar="TEXT", help="where it is from: address and version"
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="NAME",
        help="of the numbers; default: that of the project ("
        + ", ".join(f"{name}: {kind.licence}" for name, kind in KINDS.items())
        + ")",
    )
    parser.add_argument(
        "--models", default="*", metavar="A,B", help="only these; * stands for anything"
    )
    parser.add_argument(
        "--metrics", default="*", metavar="A,B", help="only these; * stands for anything"
    )
    add_option(parser, "--out", f"default: rows/NAME{SUFFIX}", metavar="FILE")


def main(args: argparse.Namespace) -> int:
    """Write the rows, and print what they are."""
    rows = parse_file(
        args.file, getattr(args, "as"), printable(args.source), printable(args.licence)
    )
    kept = [r for r in rows if fits(r.model, args.models) and fits(r.metric, args.metrics)]
    if not kept:
        known = first_few(sorted({r.model for r in rows}))
        metrics = first_few(sorted({r.metric for r in rows}), 10)
        raise UserError(f"no row is left; models are {known}; metrics are {metrics}")
    out = args.out or Path("rows") / f"{args.file.stem}{SUFFIX}"
    write_rows(out, kept)
    used = protocols(kept)
    sys.stdout.write(
        f"{printable(str(out))}: {len(kept)} numbers of {len({r.model for r in kept})} models\n"
        f"source {kept[0].source}, licence {kept[0].licence}\n"
        f"protocols: {first_few(used, 3, separator='; ')}\n"
        f"to show them: mimbench table RUNS --imported {printable(str(out))}\n"
    )
    return ExitCode.OK


def fits(name: str, patterns: str) -> bool:
    """Return whether a name fits one of several patterns."""
    chosen: Sequence[str] = patterns.split(",")
    return any(fnmatchcase(name, pattern.strip()) for pattern in chosen)
