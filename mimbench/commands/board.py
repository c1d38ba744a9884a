"""Make one static page from verified bundles: sortable, every protocol a column of its own."""

import argparse
import sys
from pathlib import Path

from mimbench.benchmarks.manifest import DEFAULT_FILE
from mimbench.system.errors import UserError, printable
from mimbench.system.exit_codes import ExitCode
from mimbench.system.files import write_text
from mimbench.system.options import Parser, add_option


def add_arguments(parser: Parser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "bundle", type=Path, nargs="+", metavar="BUNDLE", help="what `bundle` wrote"
    )
    add_option(parser, "--out", "default: board.html", metavar="FILE", default=Path("board.html"))
    add_option(parser, "--benchmarks", default=DEFAULT_FILE)
    add_option(parser, "--imported")
    parser.add_argument(
        "--skip",
        action="store_true",
        help="leave out bundles that do not verify, and list them with the reason",
    )
    parser.add_argument(
        "--digests", default="", metavar="A,B", help="each bundle must have one of these digests"
    )
    add_option(parser, "--signer")
    add_option(parser, "--strict")
    parser.add_argument(
        "--against",
        default="",
        metavar="ROW",
        help="compare every row with this one; default: the best of each column",
    )


def main(args: argparse.Namespace) -> int:
    """Write the page; return FAILED if a bundle is refused and not skipped."""
    from mimbench.suite.board.entries import Demands
    from mimbench.suite.board.making import make_board
    from mimbench.tables.foreign.shown import read_all

    digests = frozenset(d.strip().lower() for d in args.digests.split(",") if d.strip())
    for digest in digests:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise UserError(f"--digests {digest} is no SHA-256: 64 of 0-9 and a-f")
    board = make_board(
        args.bundle,
        benchmarks=args.benchmarks,
        demands=Demands(digests=digests, signers=args.signer, strict=args.strict),
        imported=read_all(args.imported),
        against=args.against,
        skip=args.skip,
    )
    for refusal in board.refusals:
        for reason in refusal.reasons:
            sys.stderr.write(f"refused: {printable(refusal.file)}: {printable(reason)}\n")
    if not board.page:
        sys.stderr.write("no board was written; --skip leaves such bundles out\n")
        return ExitCode.FAILED
    write_text(args.out, board.page)
    skipped = f", {len(board.refusals)} refused" if board.refusals else ""
    sys.stdout.write(f"{printable(str(args.out))}: {len(board.entries)} bundles{skipped}\n")
    return ExitCode.OK
